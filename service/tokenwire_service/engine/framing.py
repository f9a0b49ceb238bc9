"""Messages on a byte stream: a length (uint32, little-endian), then that many bytes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 512 << 20
_READ_BYTES = 1 << 18


class FramingError(Exception):
    """The other side does not speak this protocol."""


def encode_frame(payload: bytes) -> bytes:
    """Raises FramingError when the payload is too large."""
    if len(payload) > MAX_FRAME_BYTES:
        raise FramingError(f"a frame of {len(payload)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


class FrameDecoder:
    """Takes bytes as they come and gives whole frames."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Payloads completed by `data`. Raises FramingError for an impossible length."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > self._max_bytes:
                raise FramingError(f"a frame of {length} bytes is over the limit of {self._max_bytes}")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]


def read_frames(connection: socket.socket) -> Iterator[bytes]:
    """Payloads until the other side closes; blocks between them. A broken connection ends it like a closed one."""
    decoder = FrameDecoder()
    while True:
        try:
            data = connection.recv(_READ_BYTES)
        except OSError:
            return
        if not data:
            return
        yield from decoder.feed(data)
