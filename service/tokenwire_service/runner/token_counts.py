"""The distinct tokens one slot has seen and how often: what penalties need, kept as it grows."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_INITIAL_ROOM = 64
_Number = TypeVar("_Number", np.int64, np.float32)


class TokenCounts:
    """Sparse counts. Arrays are views of the first `size` entries; the order of entries means nothing."""

    def __init__(self, prompt: NDArray[np.int32], generated: NDArray[np.int32], *, count_prompt: bool) -> None:
        """`count_prompt` false leaves the prompt out: penalties over generated tokens alone need no more."""
        distinct, counts = np.unique(prompt if count_prompt else prompt[:0], return_counts=True)
        self._size = len(distinct)
        room = self._size + _INITIAL_ROOM
        self._token_ids = np.zeros(room, dtype=np.int64)
        self._generated = np.zeros(room, dtype=np.float32)
        self._total = np.zeros(room, dtype=np.float32)
        self._token_ids[: self._size] = distinct
        self._total[: self._size] = counts
        self._entry = {token_id: idx for idx, token_id in enumerate(distinct.tolist())}
        for token_id in generated.tolist():
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """One more generated token."""
        idx = self._entry.get(token_id)
        if idx is None:
            idx = self._entry[token_id] = self._size
            self._grow_to(self._size + 1)
            self._token_ids[idx] = token_id
        self._generated[idx] += 1
        self._total[idx] += 1

    @property
    def token_ids(self) -> NDArray[np.int64]:
        return self._token_ids[: self._size]

    @property
    def generated(self) -> NDArray[np.float32]:
        return self._generated[: self._size]

    @property
    def total(self) -> NDArray[np.float32]:
        return self._total[: self._size]

    def _grow_to(self, size: int) -> None:
        if size > len(self._token_ids):
            room = 2 * size
            self._token_ids = _resized(self._token_ids, room)
            self._generated = _resized(self._generated, room)
            self._total = _resized(self._total, room)
        self._size = size


def _resized(array: NDArray[_Number], room: int) -> NDArray[_Number]:
    grown = np.zeros(room, dtype=array.dtype)
    grown[: len(array)] = array
    return grown
