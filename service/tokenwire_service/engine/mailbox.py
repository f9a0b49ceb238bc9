"""Where one request's events wait for its reader. Everything here belongs to one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tokenwire_service.core.events import Completed, EngineEvent, Failed, FailureReason, TokensGenerated


class Mailbox:
    """A RequestStream. What waits is bounded by the request's own length; a slow reader takes more at once."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._finish: Callable[[int], None] = _unbound
        self._close: Callable[[], None] = _unbound
        self._pending: list[EngineEvent] = []
        self._waiter: asyncio.Future[None] | None = None
        self._notify: Callable[[], None] | None = None
        self._finished: set[int] = set()
        self._ended = False
        self.started = False
        """True once there was an event: an engine has begun the request."""

    def bind(self, finish: Callable[[int], None], close: Callable[[], None]) -> None:
        """Whom to tell of ends from this side; neither is called after the request ended."""
        self._finish, self._close = finish, close

    @property
    def finished(self) -> frozenset[int]:
        """Candidates that were ended from this side."""
        return frozenset(self._finished)

    @property
    def ended(self) -> bool:
        """True once the last event was put, or the stream was closed."""
        return self._ended

    @property
    def request_id(self) -> str:
        return self._request_id

    async def take(self) -> Sequence[EngineEvent]:
        """See RequestStream.take. After the last event, and after `close`, there is nothing: an empty sequence."""
        if not self._pending and not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.take_now()

    def take_now(self) -> Sequence[EngineEvent]:
        """See RequestStream.take_now."""
        pending, self._pending = self._pending, []
        return pending

    def notify(self, callback: Callable[[], None] | None) -> None:
        """See RequestStream.notify."""
        self._notify = callback
        if callback is not None and self._pending:
            callback()

    def finish_candidate(self, index: int) -> None:
        """See RequestStream.finish_candidate. Idempotent."""
        if not self._ended and index not in self._finished:
            self._finished.add(index)
            self._finish(index)

    def close(self) -> None:
        """See RequestStream.close."""
        if not self._ended:
            self._ended = True
            self._pending.clear()
            self._wake()
            self._close()

    def put(self, event: EngineEvent) -> None:
        """An event from the engine; nothing is taken after the last one."""
        if self._ended:
            return
        if isinstance(event, TokensGenerated):
            if event.index in self._finished:
                return
        else:
            # A request's tokens come after some other event.
            self.started = True
            self._ended = isinstance(event, (Completed, Failed))
        self._pending.append(event)
        if self._notify is None:
            self._wake()
        elif len(self._pending) == 1:
            self._notify()

    def fail(self, reason: FailureReason, message: str) -> None:
        """End it from this side."""
        self.put(Failed(self._request_id, reason, message))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _unbound(*_: object) -> None:
    """There is nobody to tell yet."""
