"""From the engine's news to the wire, for all streams of a step together and without waking a task for any of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from tokenwire_service.rpc.call import Call
from tokenwire_service.rpc.events import GenerationEvent
from tokenwire_service.rpc.session import Session


class Bursts:
    """Gathers the streams that one message of the engine has news for. One event loop owns it."""

    def __init__(self) -> None:
        self._ready: list[Pump] = []

    def add(self, pump: Pump) -> None:
        """Serve `pump` in the loop's next turn."""
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._serve)
        self._ready.append(pump)

    def _serve(self) -> None:
        """First every stream works out what is new, then all write.

        Each write wakes gRPC's own threads; when writes follow closely these find many of them at once.
        """
        ready, self._ready = self._ready, []
        for pump in ready:
            pump.work()
        for pump in ready:
            pump.write()


class Pump:
    """Writes one session's events, each as `message` makes it; while a write is pending, news gather at the engine's
    end of the stream and come merged."""

    def __init__(self, session: Session, call: Call, message: Callable[[GenerationEvent], Any], bursts: Bursts) -> None:
        self._session = session
        self._call = call
        self._message = message
        self._bursts = bursts
        self._messages: deque[Any] = deque()
        self._writing = False
        self._missed = False
        """There was news while a write was pending."""
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Return when the last event is written. Raises TokenwireError, and what writing raises."""
        self._session.notify(self._notified)
        try:
            await self._over
        finally:
            self._session.notify(None)

    def _notified(self) -> None:
        if self._writing:
            self._missed = True
        else:
            self._bursts.add(self)

    def work(self) -> None:
        """Work out what is new."""
        if self._over.done():
            return
        try:
            self._messages.extend([self._message(event) for event in self._session.take_now()])
        except Exception as error:
            self._over.set_exception(error)

    def write(self) -> None:
        """Write what was worked out, message after message."""
        if self._over.done() or self._writing:
            return
        if self._messages:
            self._writing = True
            self._call.write_then(self._messages.popleft(), self._written)
        elif self._session.done:
            self._over.set_result(None)

    def _written(self, error: BaseException | None) -> None:
        self._writing = False
        if self._over.done():
            return
        if error is not None:
            self._over.set_exception(error)
        elif self._messages or self._session.done:
            self.write()
        elif self._missed:
            self._missed = False
            self._bursts.add(self)
