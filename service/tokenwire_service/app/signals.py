"""SIGTERM and SIGINT: the first asks to end well, the second to end now."""

from __future__ import annotations

import asyncio
import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Counts the signals of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._first: asyncio.Future[int] = loop.create_future()
        self._second: asyncio.Future[int] = loop.create_future()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._received, int(number))

    async def first(self) -> int:
        """Wait for the first signal and return its number."""
        return await asyncio.shield(self._first)

    async def second(self) -> int:
        """Wait for the second signal and return its number."""
        return await asyncio.shield(self._second)

    def close(self) -> None:
        """Give the signals their usual meaning again."""
        for number in STOP_SIGNALS:
            self._loop.remove_signal_handler(number)

    def _received(self, number: int) -> None:
        for future in (self._first, self._second):
            if not future.done():
                future.set_result(number)
                return
