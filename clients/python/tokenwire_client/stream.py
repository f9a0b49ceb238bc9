"""Streams of the sync client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from tokenwire_client.accumulate import Accumulator
from tokenwire_client.calls import Call
from tokenwire_client.errors import Cancelled, Internal, TokenwireError, from_rpc_error

E = TypeVar("E")
R = TypeVar("R")


class EventStream(Generic[E]):
    """Events of one server stream, the protos themselves, in the order they arrive.

    Iterate over it, once. The call begins with the first event asked for, or on entering the context. Leaving a `for`
    loop early, leaving the context or dropping the object cancels the call; `next(stream)` takes one event and leaves
    it running. A failure is raised as a TokenwireError. One thread iterates; any thread may call `cancel`.
    """

    def __init__(self, start: Callable[[], Any], call: Call) -> None:
        self._start = start
        self._call = call
        self._rpc: Any = None
        self._begun = False
        self._ended = False
        self._error: TokenwireError | None = None
        self._cancelled = threading.Event()

    @property
    def request_id(self) -> str:
        """The x-request-id of the call."""
        return self._call.request_id

    def cancel(self) -> None:
        """Ends the call; iterating on raises Cancelled. Does nothing on a stream that has ended."""
        self._cancelled.set()
        if self._rpc is not None and not self._ended:
            self._rpc.cancel()

    def __iter__(self) -> Iterator[E]:
        return _Loop(self)

    def __next__(self) -> E:
        while True:
            if self._ended:
                raise self._error or StopIteration
            if self._rpc is None:
                self._open()
            try:
                event: E = next(self._rpc)
            except StopIteration:
                self._end(self._missing())
                continue
            except grpc.RpcError as error:
                self._failed(error)
                continue
            self._begun = True
            self._take(event)
            return event

    def __enter__(self) -> Self:
        if self._rpc is None and not self._ended:
            self._open()
        return self

    def __exit__(self, *_: TracebackType | BaseException | type[BaseException] | None) -> None:
        self.cancel()

    def __del__(self) -> None:
        if getattr(self, "_rpc", None) is not None and not self._ended:
            self._rpc.cancel()

    def _open(self) -> None:
        if self._cancelled.is_set():
            self._end(Cancelled("The stream was cancelled before it began.", request_id=self.request_id))
        else:
            self._rpc = self._start()
            if self._cancelled.is_set():
                self._rpc.cancel()

    def _failed(self, error: grpc.RpcError) -> None:
        """Prepares another attempt, or ends the stream with the error."""
        failure = from_rpc_error(error, self.request_id)
        delay = None if self._begun else self._call.retry_delay(failure)
        if delay is None:
            self._end(failure, cause=error)
            return
        self._rpc = None
        self._cancelled.wait(delay)

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


class _Loop(Generic[E]):
    """One `for` loop over a stream: leaving it cancels the stream."""

    def __init__(self, stream: EventStream[E]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[E]:
        return self

    def __next__(self) -> E:
        return next(self._stream)

    def __del__(self) -> None:
        self._stream.cancel()


class ResultStream(EventStream[E], Generic[E, R]):
    """An EventStream that adds up to what the unary call returns; its errors carry what arrived as `partial`."""

    def __init__(self, start: Callable[[], Any], call: Call, accumulator: Accumulator[E, R]) -> None:
        super().__init__(start, call)
        self._accumulator = accumulator

    @property
    def text(self) -> Iterator[str]:
        """The text of candidate 0, piece by piece; `text_stream()`."""
        return self.text_stream()

    def text_stream(self, index: int = 0) -> Iterator[str]:
        """The text of one candidate, piece by piece; of chats the content, without reasoning. No piece is empty."""
        for event in self:
            if text := self._accumulator.text(event, index):
                yield text

    def result(self) -> R:
        """Reads the stream to its end and returns all of it, as the unary call would."""
        for _ in self:
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
