"""Carries plans from rank 0 to the others: one stream of int32 words to each, without an answer.

A plan begins with its own number of words, which is all the framing there is. A stream of its own keeps plans from
waiting behind anything, and costs a tenth of a gloo broadcast.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_FIRST_WORDS = 1024
"""Read at once; nearly every plan is shorter."""
_MAX_WORDS = 1 << 27
_WORD_BYTES = 4


class PlanSender:
    """Rank 0's ends. One thread sends."""

    def __init__(self, connections: Sequence[socket.socket]) -> None:
        self._connections = tuple(connections)
        for connection in self._connections:
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, words: NDArray[np.int32]) -> None:
        """Raises OSError when a rank is gone."""
        data = words.data.cast("B")
        for connection in self._connections:
            connection.sendall(data)

    def close(self) -> None:
        """Tells the ranks that no plan will follow."""
        for connection in self._connections:
            connection.close()


class PlanReceiver:
    """Another rank's end. One thread receives; `close` may come from any."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._words = np.empty(_FIRST_WORDS, dtype=np.int32)
        self._num_bytes = 0
        """Received of what was not taken yet, from the start of `_words` on."""

    def receive(self) -> NDArray[np.int32] | None:
        """The next plan; None when none will follow. Raises ValueError for what is none."""
        while (needed := self._needed()) > self._num_bytes:
            self._make_room(needed)
            count = self._read()
            if not count:
                self._connection.close()
                return None
            self._num_bytes += count
        plan = self._words[: needed // _WORD_BYTES].copy()
        rest = self._num_bytes - needed
        data = self._words.data.cast("B")
        data[:rest] = bytes(data[needed : self._num_bytes])
        self._num_bytes = rest
        return plan

    def close(self) -> None:
        """Wake up who receives: there is no further plan."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The other side was faster.
            return

    def _needed(self) -> int:
        """Bytes of the plan that begins `_words`, as far as that is known."""
        if self._num_bytes < _WORD_BYTES:
            return _WORD_BYTES
        num_words = int(self._words[0])
        if not 0 < num_words <= _MAX_WORDS:
            raise ValueError(f"a plan of {num_words} words")
        return num_words * _WORD_BYTES

    def _make_room(self, num_bytes: int) -> None:
        if num_bytes > self._words.nbytes:
            grown = np.empty(num_bytes // _WORD_BYTES, dtype=np.int32)
            grown[: len(self._words)] = self._words
            self._words = grown

    def _read(self) -> int:
        try:
            return self._connection.recv_into(self._words.data.cast("B")[self._num_bytes :])
        except OSError:
            return 0
