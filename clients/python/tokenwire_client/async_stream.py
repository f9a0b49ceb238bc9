"""Streams of the async client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from grpc import aio

from tokenwire_client.accumulate import Accumulator
from tokenwire_client.calls import Call
from tokenwire_client.errors import Cancelled, Internal, TokenwireError, from_rpc_error

E = TypeVar("E")
R = TypeVar("R")


class AsyncEventStream(Generic[E]):
    """Events of one server stream, the protos themselves, in the order they arrive.

    Iterate over it, once. The call begins with the first event asked for, or on entering the context. Leaving an
    `async for` loop early, leaving the context or dropping the object cancels the call; `anext(stream)` takes one event
    and leaves it running. A failure is raised as a TokenwireError; cancelling the task raises asyncio.CancelledError as
    ever.
    """

    def __init__(self, start: Callable[[], Awaitable[Any]], call: Call) -> None:
        self._start = start
        self._call = call
        self._rpc: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = False
        self._ended = False
        self._error: TokenwireError | None = None
        self._cancelled = asyncio.Event()

    @property
    def request_id(self) -> str:
        """The x-request-id of the call."""
        return self._call.request_id

    def cancel(self) -> None:
        """Ends the call; iterating on raises Cancelled. Does nothing on a stream that has ended."""
        self._cancelled.set()
        if self._rpc is not None and not self._ended:
            self._rpc.cancel()

    def __aiter__(self) -> AsyncIterator[E]:
        return _Loop(self)

    async def __anext__(self) -> E:
        while True:
            if self._ended:
                raise self._error or StopAsyncIteration
            try:
                if self._rpc is None:
                    await self._open()
                    continue
                event: Any = await self._rpc.read()
            except aio.AioRpcError as error:
                await self._failed(error)
                continue
            except asyncio.CancelledError:
                if cancelled_from_outside():
                    self._end(Cancelled("The task reading the stream was cancelled.", request_id=self.request_id))
                    raise
                self._end(Cancelled("The stream was cancelled.", request_id=self.request_id))
                continue
            if event is aio.EOF:
                self._end(self._missing())
                continue
            self._begun = True
            self._take(event)
            result: E = event
            return result

    async def __aenter__(self) -> Self:
        if self._rpc is None and not self._ended:
            await self._open()
        return self

    async def __aexit__(self, *_: TracebackType | BaseException | type[BaseException] | None) -> None:
        self.cancel()

    def __del__(self) -> None:
        if getattr(self, "_rpc", None) is not None:
            self._abandon()

    def _abandon(self) -> None:
        """Cancels from a finalizer, which may run in any thread and after the loop was closed."""
        if self._ended or self._rpc is None or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._rpc.cancel)

    async def _open(self) -> None:
        if self._cancelled.is_set():
            self._end(Cancelled("The stream was cancelled before it began.", request_id=self.request_id))
            return
        self._loop = asyncio.get_running_loop()
        self._rpc = await self._start()
        if self._cancelled.is_set():
            self._rpc.cancel()

    async def _failed(self, error: aio.AioRpcError) -> None:
        """Prepares another attempt, or ends the stream with the error."""
        failure = from_rpc_error(error, self.request_id)
        delay = None if self._begun else self._call.retry_delay(failure)
        if delay is None:
            self._end(failure, cause=error)
            return
        self._rpc = None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._cancelled.wait(), delay)

    def _end(self, error: TokenwireError | None, cause: BaseException | None = None) -> None:
        self._ended = True
        self._error = error
        if error is not None:
            error.__cause__ = cause
            self._add_partial(error)

    def _take(self, event: E) -> None:
        """Notes an event."""

    def _missing(self) -> TokenwireError | None:
        """The error when the stream ended OK but short of what the contract promises."""
        return None

    def _add_partial(self, error: TokenwireError) -> None:
        """Puts what has arrived on the error."""


def cancelled_from_outside() -> bool:
    """Whether the running task was told to stop; grpc raises CancelledError for calls that were cancelled, too."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Loop(Generic[E]):
    """One `async for` loop over a stream: leaving it cancels the stream."""

    def __init__(self, stream: AsyncEventStream[E]) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[E]:
        return self

    def __anext__(self) -> Awaitable[E]:
        return self._stream.__anext__()

    def __del__(self) -> None:
        self._stream._abandon()


class AsyncResultStream(AsyncEventStream[E], Generic[E, R]):
    """An AsyncEventStream that adds up to what the unary call returns; its errors carry what arrived as `partial`."""

    def __init__(self, start: Callable[[], Awaitable[Any]], call: Call, accumulator: Accumulator[E, R]) -> None:
        super().__init__(start, call)
        self._accumulator = accumulator

    @property
    def text(self) -> AsyncIterator[str]:
        """The text of candidate 0, piece by piece; `text_stream()`."""
        return self.text_stream()

    async def text_stream(self, index: int = 0) -> AsyncIterator[str]:
        """The text of one candidate, piece by piece; of chats the content, without reasoning. No piece is empty."""
        async for event in self:
            if text := self._accumulator.text(event, index):
                yield text

    async def result(self) -> R:
        """Reads the stream to its end and returns all of it, as the unary call would."""
        async for _ in self:
            pass
        return self._accumulator.result()

    def snapshot(self) -> R:
        """What has arrived so far."""
        return self._accumulator.result()

    def _take(self, event: E) -> None:
        self._accumulator.add(event)

    def _missing(self) -> TokenwireError | None:
        if self._accumulator.completed:
            return None
        return Internal("The stream ended without its completed event.", request_id=self.request_id)

    def _add_partial(self, error: TokenwireError) -> None:
        partial: Any = self._accumulator.result()
        error.partial = partial
