"""How a start shows itself: the same bars or log lines for fetching and for what the engine process reports."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack

from tokenwire_service.config import FrontendConfig
from tokenwire_service.weights.progress import BarProgress, LogProgress, Progress, ProgressTask


def choose_progress(frontend: FrontendConfig, logger: logging.Logger) -> Progress:
    """Bars on a terminal, log lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() and not frontend.json_output else LogProgress(logger)


class PhaseProgress:
    """Turns (phase, fraction) reports into one task after the other; tells `overall` each fraction too."""

    def __init__(self, progress: Progress, overall: Callable[[float], None]) -> None:
        self._progress = progress
        self._overall = overall
        self._stack = ExitStack()
        self._phase: str | None = None
        self._task: ProgressTask | None = None

    def report(self, phase: str, fraction: float) -> None:
        """`fraction` of `phase` is done."""
        if phase != self._phase or (self._task is None and fraction < 1.0):
            self._stack.close()
            self._phase = phase
            self._task = self._stack.enter_context(self._progress.task(phase, 100, "%"))
        if self._task is not None:
            self._task.set_done(round(100 * fraction))
        if fraction >= 1.0:
            self._stack.close()
            self._task = None
        self._overall(fraction)

    def close(self) -> None:
        """The last phase is over."""
        self._stack.close()
        self._phase = self._task = None
