"""Carries a plan to every rank and brings back rank 0's result."""

from __future__ import annotations

from typing import Protocol

from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import SchedulerOutput, StepResult


class PendingStep(Protocol):
    """A step that was launched."""

    def result(self) -> StepResult:
        """What it brought; waits until it has. Steps are asked in the order of their launch. An exception means that
        the step is lost."""
        ...


class Executor(Protocol):
    """All ranks, seen from the engine. Ranks draw the same tokens, so that results need not travel back."""

    @property
    def runs_ahead(self) -> bool:
        """Whether a launched step goes on by itself: it pays to launch the next before asking for its result."""
        ...

    def launch(self, output: SchedulerOutput) -> PendingStep:
        """Set one plan going on every rank; plans come in scheduling order. An exception means the step is lost."""
        ...

    def close(self) -> None:
        """End the ranks. Idempotent."""
        ...


class LocalExecutor:
    """The one rank there is, in this process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def runs_ahead(self) -> bool:
        return self._worker.device.type == "cuda"

    def launch(self, output: SchedulerOutput) -> PendingStep:
        return self._worker.launch(output)

    def close(self) -> None:
        """Nothing to end: the worker goes with the process."""
