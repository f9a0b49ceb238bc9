"""Clients that cost next to nothing, for measurements of a server beside them: they count, and parse next to nothing.

They are asked to read now and then, and sleep in no read: a server on the same machine would else be charged for waking
its client with every packet, which it is not when its clients are elsewhere.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_INITIAL_WINDOW_SIZE = 4
_LARGEST_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_HEADER = struct.Struct(">BHBBI")
_PREFIX = struct.Struct(">BI")
_READ_BYTES = 1 << 18
_ENDED = "a stream ended while it was measured: the server failed, or has generated all it may; take fewer seconds"


class StreamEndedError(Exception):
    """A stream or its connection ended."""


@dataclass(slots=True)
class Tally:
    """What arrived, over all connections."""

    tokens: int = 0


class Connection(Protocol):
    """One connection to a server of this machine."""

    def read(self) -> None:
        """Take what has arrived, without waiting. Raises StreamEndedError."""

    def close(self) -> None:
        """End it and its streams."""


class _Socket:
    def __init__(self, port: int, hello: bytes) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(hello)
        self._socket.setblocking(False)

    def take(self) -> bytes:
        """Bytes that have arrived; none when there are none. Raises StreamEndedError."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            raise StreamEndedError(_ENDED)
        return data

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()


class GrpcStreams:
    """Server streams of `method` over one connection, each called with the serialized `request`.

    HTTP/2 as far as reading them needs: no flow control (windows are as large as can be), no header compression,
    answers to SETTINGS and PING. `num_tokens` tells how many tokens a serialized message has; None takes each for one.
    """

    def __init__(
        self,
        port: int,
        method: str,
        request: bytes,
        tally: Tally,
        num_streams: int = 1,
        num_tokens: Callable[[bytes], int] | None = None,
    ) -> None:
        self._tally = tally
        self._num_tokens = num_tokens
        self._buffer = bytearray()
        self._socket = _Socket(port, _hello(method, request, num_streams))

    def read(self) -> None:
        """See Connection.read."""
        while data := self._socket.take():
            self._buffer += data
            self._digest()

    def close(self) -> None:
        """See Connection.close."""
        self._socket.close()

    def _digest(self) -> None:
        buffer = self._buffer
        at = 0
        while len(buffer) - at >= _HEADER.size:
            high, low, kind, flags, _ = _HEADER.unpack_from(buffer, at)
            start = at + _HEADER.size
            end = start + (high << 16 | low)
            if len(buffer) < end:
                break
            if kind == _DATA:
                self._tally.tokens += 1 if self._num_tokens is None else self._num_tokens(_message(buffer, start, end))
            else:
                self._control(kind, flags, bytes(buffer[start:end]))
            at = end
        del buffer[:at]

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._socket.send(_frame(_SETTINGS, b"", _ACK))
        elif kind == _PING and not flags & _ACK:
            self._socket.send(_frame(_PING, payload, _ACK))
        elif kind in (_RST_STREAM, _GOAWAY) or (kind == _HEADERS and flags & _END_STREAM):
            raise StreamEndedError(_ENDED)


class RestStream:
    """One stream of /v1/completions with a JSON body; an event is a token."""

    def __init__(self, port: int, body: bytes, tally: Tally) -> None:
        head = (
            "POST /v1/completions HTTP/1.1",
            "Host: bench",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "",
            "",
        )
        self._tally = tally
        self._socket = _Socket(port, "\r\n".join(head).encode() + body)

    def read(self) -> None:
        """See Connection.read."""
        while data := self._socket.take():
            self._tally.tokens += data.count(b"data: {")

    def close(self) -> None:
        """See Connection.close."""
        self._socket.close()


def _hello(method: str, request: bytes, num_streams: int) -> bytes:
    """All that a client says by itself."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "bench",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    parts = [
        _PREFACE,
        _frame(_SETTINGS, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)),
        _frame(_WINDOW_UPDATE, struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW)),
    ]
    for stream in range(1, 2 * num_streams, 2):
        parts.append(_frame(_HEADERS, _literal(headers.items()), _END_HEADERS, stream))
        parts.append(_frame(_DATA, _PREFIX.pack(0, len(request)) + request, _END_STREAM, stream))
    return b"".join(parts)


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
