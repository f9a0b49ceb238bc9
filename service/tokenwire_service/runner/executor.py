"""Carries a plan to every rank and brings back rank 0's result."""

from __future__ import annotations

from typing import Protocol

from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import SchedulerOutput, StepResult


class Executor(Protocol):
    """All ranks, seen from the engine. Ranks draw the same tokens, so that results need not travel back."""

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Carry out one plan on every rank; plans come in scheduling order. An exception means the step is lost."""
        ...

    def close(self) -> None:
        """End the ranks. Idempotent."""
        ...


class LocalExecutor:
    """The one rank there is, in this process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def execute(self, output: SchedulerOutput) -> StepResult:
        return self._worker.execute(output)

    def close(self) -> None:
        """Nothing to end: the worker goes with the process."""
