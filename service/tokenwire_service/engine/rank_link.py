"""The control connection between rank 0 and another rank: frames of protobuf, and a sign of life each second.

A thread of its own reads and sends, so that neither loading nor a collective that hangs keeps it from noticing that the
other side died (its connection closes, within milliseconds) or stands still (silence).
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from tokenwire_service.engine.framing import FrameDecoder, FramingError, encode_frame

_MAX_FRAME_BYTES = 1 << 20
_READ_BYTES = 1 << 16
T = TypeVar("T", bound=Message)


class LinkError(Exception):
    """The other side is gone, or does not speak this protocol; the message says what it did, for the operator."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """How often a side gives a sign of life, and how long the other is believed without one."""

    interval_s: float = 1.0
    silence_s: float = 5.0


class RankLink(Generic[T]):
    """One end, over a connected socket; T is what it receives."""

    def __init__(self, connection: socket.socket, received: type[T], pulse: Pulse | None = None) -> None:
        self._connection = connection
        self._received = received
        self._pulse = pulse or Pulse()
        self._decoder = FrameDecoder(_MAX_FRAME_BYTES)
        self._waiting: deque[T] = deque()
        """Received and not taken yet."""
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._followed = False
        connection.settimeout(self._pulse.silence_s)
        with contextlib.suppress(OSError):
            # Unix sockets, which tests use, know no such option.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def local_address(self) -> str:
        """This machine's address on the way to the other side."""
        return str(self._connection.getsockname()[0])

    def send(self, message: Message) -> None:
        """From any thread. A side that is gone is the reader's business."""
        with self._writing, contextlib.suppress(OSError):
            self._connection.sendall(encode_frame(message.SerializeToString()))

    def receive(self, timeout_s: float) -> T:
        """The next message, before `follow`. Raises LinkError when none comes in time."""
        deadline = time.monotonic() + timeout_s
        while not self._waiting:
            if not self._is_readable(deadline - time.monotonic()):
                raise LinkError(f"said nothing for {timeout_s:g} s")
            self._read()
        return self._waiting.popleft()

    def follow(
        self, sign_of_life: Callable[[], Message], on_message: Callable[[T], None], on_lost: Callable[[str], None]
    ) -> None:
        """From now on a thread sends signs of life and calls `on_message` for what comes, and `on_lost`, once, with
        what the other side did when it went away."""
        self._followed = True
        arguments = (sign_of_life, on_message, on_lost)
        threading.Thread(target=self._follow, args=arguments, name="rank-link", daemon=True).start()

    def detach(self) -> socket.socket:
        """The connection, for another use."""
        return self._connection

    def close(self) -> None:
        """From any thread; what follows is of no interest."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if not self._followed:
            self._connection.close()

    def _follow(
        self, sign_of_life: Callable[[], Message], on_message: Callable[[T], None], on_lost: Callable[[str], None]
    ) -> None:
        try:
            self._exchange(sign_of_life, on_message)
        except LinkError as error:
            self._connection.close()
            if not self._closed.is_set():
                on_lost(str(error))

    def _exchange(self, sign_of_life: Callable[[], Message], on_message: Callable[[T], None]) -> None:
        """Ends by LinkError."""
        next_sign = looked_at = time.monotonic()
        silent_s = 0.0
        while True:
            while self._waiting:
                on_message(self._waiting.popleft())
            if (now := time.monotonic()) >= next_sign:
                self.send(sign_of_life())
                next_sign = now + self._pulse.interval_s
            # Where this process itself stood still, as in a paused container, the other side could not be heard.
            silent_s += min(now - looked_at, self._pulse.interval_s)
            looked_at = now
            if self._is_readable(next_sign - now):
                self._read()
                silent_s = 0.0
            elif silent_s > self._pulse.silence_s:
                raise LinkError(f"gave no sign of life for {silent_s:.1f} s")

    def _is_readable(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000.0))

    def _read(self) -> None:
        try:
            data = self._connection.recv(_READ_BYTES)
        except ConnectionResetError:
            # A process that ends with something unread resets its connections.
            data = b""
        except OSError as error:
            raise LinkError(f"lost its connection ({error.strerror or error})") from error
        if not data:
            raise LinkError("closed its connection")
        try:
            self._waiting += [self._received.FromString(payload) for payload in self._decoder.feed(data)]
        except (DecodeError, FramingError) as error:
            raise LinkError(f"sent what is no message ({error})") from error
