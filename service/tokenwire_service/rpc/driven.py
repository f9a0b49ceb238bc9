"""Coroutines that run without a task of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any


class Driver:
    """Runs one coroutine after the other: each as far as it goes at once, and on when somebody asks or waits for it.

    A task would begin only in the loop's next turn and end one turn later, and even a callback at the end would cost a
    turn: for something as short as one write, that is most of its cost. What is driven must not ask for its task.
    """

    __slots__ = ("_awaited", "_coroutine")

    def __init__(self) -> None:
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._awaited: asyncio.Future[Any] | None = None

    @property
    def waits(self) -> bool:
        """Whether something is under way that cannot go on yet."""
        return self._coroutine is not None and self._awaited is not None and not self._awaited.done()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> bool:
        """Begin; the one before must have ended. Whether it ended at once. Raises what it raises."""
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return True
        if awaited is not None:
            # What a task does with a future it is handed.
            awaited._asyncio_future_blocking = False
        self._coroutine, self._awaited = coroutine, awaited
        return False

    def ended(self) -> bool:
        """Whether nothing is under way; goes on with what can. Raises what that raises, once."""
        coroutine, awaited = self._coroutine, self._awaited
        if coroutine is None:
            return True
        if awaited is not None and not awaited.done():
            return False
        self._coroutine = None
        return self.start(coroutine)

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, in a turn of the loop, when it is worth asking again whether it ended."""
        if self.waits and self._awaited is not None:
            self._awaited.add_done_callback(lambda _: callback())
        else:
            asyncio.get_running_loop().call_soon(callback)

    def let_go(self) -> None:
        """Let what is under way come to its end, whatever that is, with nobody waiting."""
        with suppress(Exception, asyncio.CancelledError):
            if not self.ended():
                self.when_ready(self.let_go)
