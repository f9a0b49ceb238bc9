"""Coroutines that run without a task of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Then = Callable[[BaseException | None], None]


class Driven:
    """Runs a coroutine as far as it goes at once, and on whenever what it waits for is there; `then` gets its end.

    A task would begin only in the loop's next turn and end one turn later: for something as short as one write, that is
    most of its cost. What is driven must not ask for the current task; `then` may be called before `start` returns.
    """

    __slots__ = ("_coroutine", "_then")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], then: Then) -> None:
        self._coroutine = coroutine
        self._then = then

    def start(self, _: object = None) -> None:
        """Go on until the next wait."""
        try:
            awaited = self._coroutine.send(None)
        except StopIteration:
            self._then(None)
        except BaseException as error:
            self._then(error)
        else:
            if awaited is None:
                asyncio.get_running_loop().call_soon(self.start)
                return
            # What a task does with a future it is handed.
            awaited._asyncio_future_blocking = False
            awaited.add_done_callback(self.start)
