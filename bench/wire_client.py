"""A gRPC client that costs next to nothing, for measurements of a server beside it: it counts and parses no message.

HTTP/2 as far as reading server streams needs: no flow control (windows are as large as can be),
no header compression, answers to SETTINGS and PING.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_INITIAL_WINDOW_SIZE = 4
_LARGEST_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_HEADER = struct.Struct(">BHBBI")
_PREFIX = struct.Struct(">BI")


@dataclass(slots=True)
class Tally:
    """What arrived, over all connections."""

    tokens: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with the first end of a stream."""


class WireStreams(asyncio.Protocol):
    """One connection with server streams of `method`, each called with the serialized `request`.

    `num_tokens` tells how many tokens a serialized message has; None takes each for one.
    """

    def __init__(
        self,
        method: str,
        request: bytes,
        tally: Tally,
        num_streams: int = 1,
        num_tokens: Callable[[bytes], int] | None = None,
    ) -> None:
        self._method = method
        self._request = request
        self._tally = tally
        self._num_streams = num_streams
        self._num_tokens = num_tokens
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": self._method,
            ":authority": "bench",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        message = _PREFIX.pack(0, len(self._request)) + self._request
        self._send(
            _PREFACE,
            _frame(_SETTINGS, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)),
            _frame(_WINDOW_UPDATE, struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW)),
        )
        for stream in range(1, 2 * self._num_streams, 2):
            self._send(
                _frame(_HEADERS, _literal(headers.items()), _END_HEADERS, stream),
                _frame(_DATA, message, _END_STREAM, stream),
            )

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= 9:
            high, low, kind, flags, _ = _HEADER.unpack_from(buffer, at)
            end = at + 9 + (high << 16 | low)
            if len(buffer) < end:
                break
            if kind == _DATA:
                self._tally.tokens += 1 if self._num_tokens is None else self._num_tokens(_message(buffer, at + 9, end))
            else:
                self._control(kind, flags, bytes(buffer[at + 9 : end]))
            at = end
        del buffer[:at]

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._send(_frame(_SETTINGS, b"", _ACK))
        elif kind == _PING and not flags & _ACK:
            self._send(_frame(_PING, payload, _ACK))
        elif kind in (_RST_STREAM, _GOAWAY) or (kind == _HEADERS and flags & _END_STREAM):
            self._tally.ended.set()

    def _send(self, *frames: bytes) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(frames))


def _message(buffer: bytearray, start: int, end: int) -> bytes:
    """The one message of a DATA frame, without its prefix; servers here write each by itself."""
    compressed, size = _PREFIX.unpack_from(buffer, start)
    if compressed or start + _PREFIX.size + size != end:
        raise ValueError("a frame that is not one plain message")
    return bytes(buffer[start + _PREFIX.size : end])


def _frame(kind: int, payload: bytes, flags: int = 0, stream: int = 0) -> bytes:
    return _HEADER.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _literal(headers: Iterable[tuple[str, str]]) -> bytes:
    """HPACK: literals without indexing, uncompressed; all shorter than 127 bytes."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def _string(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
