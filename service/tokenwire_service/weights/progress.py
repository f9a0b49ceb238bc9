"""How long work shows itself: a bar on a terminal, a line now and then elsewhere, nothing in tests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm

_LOG_EVERY_S = 5.0


class ProgressTask(Protocol):
    """One piece of work under way. Calls may come from several threads."""

    def set_total(self, total: int) -> None:
        """The amount of work in all; may grow."""

    def set_done(self, done: int) -> None:
        """The amount of work done so far."""


class Progress(Protocol):
    """Where work reports how far it is."""

    @contextmanager
    def task(self, label: str, total: int = 0, unit: str = "B") -> Iterator[ProgressTask]:
        """A task of `total` units (0: not known yet), lasting as long as the context. Unit: 'B' (bytes) or a noun."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, label: str, total: int = 0, unit: str = "B") -> Iterator[ProgressTask]:
        yield CallbackTask(lambda done, total: None, total)


class CallbackTask:
    """Tells a function (done, total) on every change."""

    def __init__(self, report: Callable[[int, int], None], total: int) -> None:
        self._report, self._done, self._total = report, 0, total

    def set_total(self, total: int) -> None:
        self._total = total
        self._report(self._done, self._total)

    def set_done(self, done: int) -> None:
        self._done = done
        self._report(self._done, self._total)


class BarProgress:
    """A tqdm bar on standard error, for a terminal."""

    @contextmanager
    def task(self, label: str, total: int = 0, unit: str = "B") -> Iterator[ProgressTask]:
        scaled = unit == "B"
        suffix = unit if scaled else f" {unit}"
        with tqdm(
            desc=label, total=total or None, unit=suffix, unit_scale=scaled, unit_divisor=1024, dynamic_ncols=True
        ) as bar:

            def report(done: int, total: int) -> None:
                bar.total = total or None
                bar.update(done - bar.n)

            yield CallbackTask(report, total)


class LogProgress:
    """A log line when a task begins and ends and every five seconds between."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    @contextmanager
    def task(self, label: str, total: int = 0, unit: str = "B") -> Iterator[ProgressTask]:
        began = last = time.monotonic()
        self._logger.info("%s", label)

        def report(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LOG_EVERY_S:
                last = now
                self._logger.info("%s: %s", label, _amount(done, total, unit))

        yield CallbackTask(report, total)
        self._logger.info("%s: done in %.1f s", label, time.monotonic() - began)


def _amount(done: int, total: int, unit: str) -> str:
    scale, name = (1 << 20, "MiB") if unit == "B" else (1, unit)
    if total:
        return f"{done / scale:.0f} of {total / scale:.0f} {name} ({100 * done // total} %)"
    return f"{done / scale:.0f} {name}"
