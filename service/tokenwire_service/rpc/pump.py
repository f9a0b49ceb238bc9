"""From the engine's news to the wire, for all streams of a step together and without waking a task for any of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from tokenwire_service.rpc.call import Call, write_error
from tokenwire_service.rpc.convert.plain_delta import ReadyEvents
from tokenwire_service.rpc.events import GenerationEvent
from tokenwire_service.rpc.session import Session


class Bursts:
    """Gathers the streams that one message of the engine has news for. One event loop owns it."""

    def __init__(self) -> None:
        self._ready: list[Pump] = []

    def add(self, pump: Pump) -> None:
        """Serve `pump` in the loop's next turn, when all its news of the engine's message are there."""
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._serve)
        self._ready.append(pump)

    def _serve(self) -> None:
        ready, self._ready = self._ready, []
        now = time.monotonic()
        for pump in ready:
            pump.serve(now)


class Pump:
    """Writes one session's events, each as `message` makes it; while a write is pending, news gather at the engine's
    end of the stream and come merged.

    How a write went is asked when there is news again, or more to write: while the reader keeps up, nothing waits for
    its end.
    """

    def __init__(
        self,
        session: Session,
        call: Call,
        message: Callable[[GenerationEvent], bytes],
        bursts: Bursts,
        ready: ReadyEvents | None,
    ) -> None:
        """`ready`: see Session.take_now."""
        self._session = session
        self._call = call
        self._writer = call.writer
        self._message = message
        self._bursts = bursts
        self._ready = ready
        self._messages: deque[bytes] = deque()
        self._waiting = False
        """The end of a write will call `_go_on`."""
        self._missed = False
        """There was news while a write was pending."""
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Return when the last event is written. Raises TokenwireError, and what writing raises."""
        self._session.notify(partial(self._bursts.add, self))
        try:
            await self._over
        finally:
            self._session.notify(None)
            self._writer.let_go()

    def serve(self, now: float) -> None:
        """Write what is new, once nothing is being written; `now` is monotonic seconds."""
        self._work()
        self._write(now)

    def _work(self) -> None:
        if self._over.done():
            return
        try:
            if self._waiting or not self._writer.ended():
                self._missed = True
                self._wait()
                return
            news = self._session.take_now(self._ready)
            if isinstance(news, bytes):
                self._messages.append(news)
            else:
                self._messages.extend([self._message(event) for event in news])
        except (Exception, asyncio.CancelledError) as error:
            self._over.set_exception(write_error(error))

    def _write(self, now: float) -> None:
        if self._waiting or self._over.done():
            return
        try:
            while self._messages:
                if not self._call.begin_write(self._messages.popleft(), now):
                    if self._messages or self._missed or self._session.done:
                        self._wait()
                    return
        except (Exception, asyncio.CancelledError) as error:
            self._over.set_exception(write_error(error))
        else:
            if self._session.done:
                self._over.set_result(None)
            elif self._missed:
                self._missed = False
                self._bursts.add(self)

    def _wait(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._writer.when_ready(self._go_on)

    def _go_on(self) -> None:
        self._waiting = False
        if self._over.done():
            return
        try:
            written = self._writer.ended()
        except (Exception, asyncio.CancelledError) as error:
            self._over.set_exception(write_error(error))
            return
        if written:
            self._write(time.monotonic())
        else:
            self._wait()
