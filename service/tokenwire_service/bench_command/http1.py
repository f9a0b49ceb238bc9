"""HTTP/1.1 as far as a load generator needs it: POST and GET, bodies as they come, connections used again.

Small on purpose: what the generator spends for each event, on the server's own machine, the server does not have.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from urllib.parse import urlsplit

MAX_LINE_BYTES = 64 * 1024
MAX_CHUNK_BYTES = 16 * 1024 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_HEADERS = 200
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpError(Exception):
    """The connection failed, or the other end does not speak HTTP/1.1."""


class HttpClient:
    """Connections to one server."""

    def __init__(self, base_url: str, tls_ca_path: str = "") -> None:
        """Raises ValueError for a URL that names no server, OSError when the certificates cannot be read."""
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("give http://HOST:PORT or https://HOST:PORT")
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._path = url.path.rstrip("/")
        self._authority = url.netloc.rpartition("@")[2]
        self._ssl = ssl.create_default_context(cafile=tls_ca_path or None) if url.scheme == "https" else None
        self._idle: list[_Streams] = []

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Response:
        """Send a request and read the head of its answer. Raises HttpError."""
        fields = {"Host": self._authority, "Content-Length": str(len(body)), **headers}
        lines = [f"{method} {self._path}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        sent = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        while self._idle:
            try:
                return await self._exchange(self._idle.pop(), sent)
            except HttpError:
                # It was closed while it lay idle.
                continue
        try:
            streams = await asyncio.open_connection(self._host, self._port, ssl=self._ssl, limit=MAX_LINE_BYTES)
        except OSError as error:
            raise HttpError(f"cannot connect: {error.strerror or error}") from None
        return await self._exchange(streams, sent)

    async def _exchange(self, streams: _Streams, sent: bytes) -> Response:
        reader, writer = streams
        try:
            writer.write(sent)
            await writer.drain()
            status, headers = await _head(reader)
        except BaseException as error:
            writer.close()
            if isinstance(error, OSError | asyncio.IncompleteReadError | asyncio.LimitOverrunError | ValueError):
                raise HttpError(f"the connection broke: {error}") from None
            raise
        return Response(status, headers, streams, self._idle)

    def close(self) -> None:
        """Close the connections that lie idle."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


class Response:
    """An answer whose body is still to be read; `close` it."""

    def __init__(self, status: int, headers: Mapping[str, str], streams: _Streams, idle: list[_Streams]) -> None:
        self.status = status
        self.headers = headers
        self._reader, self._writer = streams
        self._idle = idle
        self._whole = False

    async def lines(self) -> AsyncGenerator[bytes]:
        """The body's lines without their ends. Raises HttpError."""
        rest = b""
        async for part in self._parts():
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield line.rstrip(b"\r")
        if rest:
            yield rest

    async def body(self) -> bytes:
        """All of it. Raises HttpError."""
        parts: list[bytes] = []
        size = 0
        async for part in self._parts():
            parts.append(part)
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise HttpError(f"an answer of more than {MAX_BODY_BYTES} bytes")
        return b"".join(parts)

    def close(self) -> None:
        """Keep the connection for another request when the body was read to its end, else close it."""
        if self._whole and self.headers.get("connection", "").lower() != "close":
            self._idle.append((self._reader, self._writer))
        else:
            self._writer.close()
        self._whole = False

    async def _parts(self) -> AsyncGenerator[bytes]:
        try:
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                async for part in self._chunks():
                    yield part
            elif "content-length" in self.headers:
                async for part in self._exactly(int(self.headers["content-length"])):
                    yield part
            else:
                while part := await self._reader.read(MAX_LINE_BYTES):
                    yield part
                return
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise HttpError(f"the connection broke: {error}") from None
        self._whole = True

    async def _chunks(self) -> AsyncGenerator[bytes]:
        while True:
            size = int((await self._reader.readuntil(b"\n")).split(b";")[0], 16)
            if not 0 <= size <= MAX_CHUNK_BYTES:
                raise ValueError(f"a chunk of {size} bytes")
            part = await self._reader.readexactly(size + 2)
            if size == 0:
                return
            yield part[:-2]

    async def _exactly(self, size: int) -> AsyncGenerator[bytes]:
        while size > 0:
            part = await self._reader.read(min(size, MAX_LINE_BYTES))
            if not part:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(part)
            yield part


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    version, _, rest = (await reader.readuntil(b"\n")).decode("latin-1").partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError("the answer is not HTTP/1.1")
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        line = (await reader.readuntil(b"\n")).decode("latin-1").strip()
        if not line:
            return int(rest[:3]), headers
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    raise ValueError(f"more than {MAX_HEADERS} headers")
