"""Server-sent events as raw bytes, and the tie between an HTTP client and the work done for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenwire_gateway.errors import CLIENT_CLOSED_REQUEST, GatewayError, Problem, internal
from tokenwire_gateway.facts import RequestFacts, facts_of

_T = TypeVar("_T")
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_log = logging.getLogger("tokenwire_gateway")

SEND_KEY = "tokenwire.send"

ErrorFrame = Callable[[Problem], bytes]


def direct(app: ASGIApp) -> ASGIApp:
    """`app`, whose event streams send what follows their start straight to the server, past all middleware."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[SEND_KEY] = send
        await app(scope, receive, send)

    return serve


def frame(event: Any) -> bytes:
    """One event; floats that JSON cannot say become null."""
    return b"data: " + orjson.dumps(event) + b"\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, cancelled when the client leaves. The body must have been read. Raises ClientDisconnect."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _end(task, gone)


class EventStream(Response):
    """A response of server-sent events. `begin` it, so that a failure before the first event can still be a status.

    Frames are written as they come; a comment keeps the connection alive through silence; a client that goes away
    closes `frames` at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self, frames: AsyncGenerator[bytes], error_frame: ErrorFrame, keep_alive_s: float, headers: Mapping[str, str]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._frames = frames
        self._error_frame = error_frame
        self._keep_alive_s = keep_alive_s
        self._first: asyncio.Future[bytes] | None = None
        self._sent_at = 0.0

    async def begin(self, receive: Receive) -> None:
        """Wait for the first frame, but no longer than the keep-alive interval: then the response begins without it.

        Raises GatewayError when the frames fail before the first one, ClientDisconnect.
        """
        first = self._first = asyncio.ensure_future(anext(self._frames))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((first, gone), timeout=self._keep_alive_s, return_when=asyncio.FIRST_COMPLETED)
            if first.done():
                first.result()
            elif gone.done():
                raise ClientDisconnect
        except BaseException:
            await self._close()
            raise
        finally:
            await _end(gone)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the response over ASGI."""
        self._sent_at = time.monotonic()
        tasks: list[asyncio.Future[None]] = []
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # Middleware between here and the server only looks at the start.
            body = scope.get(SEND_KEY, send)
            pump = asyncio.ensure_future(self._pump(body, facts_of(scope)))
            gone = asyncio.ensure_future(_disconnected(receive))
            tasks = [pump, gone, asyncio.ensure_future(self._keep_alive(body))]
            await asyncio.wait((pump, gone), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            else:
                facts_of(scope).status = CLIENT_CLOSED_REQUEST
        finally:
            await _end(*tasks)
            await self._close()

    async def _pump(self, send: Send, facts: RequestFacts) -> None:
        try:
            if self._first is not None:
                await self._write(send, await self._first)
            async for chunk in self._frames:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._sent_at = time.monotonic()
        except StopAsyncIteration:
            pass
        except GatewayError as error:
            facts.failure = error.problem.reason
            await self._write(send, self._error_frame(error.problem))
        except Exception:
            _log.exception("stream failed", extra={"request_id": facts.request_id})
            facts.failure = "INTERNAL"
            await self._write(send, self._error_frame(internal()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, chunk: bytes) -> None:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sent_at = time.monotonic()

    async def _keep_alive(self, send: Send) -> None:
        while True:
            wait = self._sent_at + self._keep_alive_s - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                await self._write(send, KEEP_ALIVE)

    async def _close(self) -> None:
        if self._first is not None:
            await _end(self._first)
        await self._frames.aclose()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
