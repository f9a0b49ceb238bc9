"""Carries a plan to every rank and brings back rank 0's result."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tokenwire_service.parallel.plan_channel import PlanSender
from tokenwire_service.runner.step_plan import encode
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


class ShardedExecutor:
    """Many ranks: the plan is on its way to the others before this one begins with it.

    One rank that fails leaves the others waiting for it: `fail`, which does not return, ends them all.
    """

    def __init__(self, local: Executor, plans: PlanSender, fail: Callable[[str], None]) -> None:
        """`local` computes rank 0's part."""
        self._local = local
        self._plans = plans
        self._fail = fail
        self._in_flight: deque[int] = deque()

    @property
    def runs_ahead(self) -> bool:
        return self._local.runs_ahead

    @property
    def waits_for(self) -> int | None:
        """Id of the oldest step whose result was not brought yet. From any thread."""
        try:
            return self._in_flight[0]
        except IndexError:
            return None

    def launch(self, output: SchedulerOutput) -> PendingStep:
        if not (output.scheduled or output.joins or output.leaves):
            return self._local.launch(output)
        try:
            self._plans.send(encode(output))
            pending = self._local.launch(output)
        except Exception as error:
            self._fail(f"failed in step {output.step_id}: {type(error).__name__}: {error}")
            raise
        if not output.scheduled:
            return pending
        self._in_flight.append(output.step_id)
        return _Launched(pending, self._finish)

    def _finish(self, pending: PendingStep) -> StepResult:
        try:
            result = pending.result()
        except Exception as error:
            self._fail(f"failed in step {self._in_flight[0]}: {type(error).__name__}: {error}")
            raise
        self._in_flight.popleft()
        return result

    def close(self) -> None:
        self._plans.close()
        self._local.close()


@dataclass(frozen=True, slots=True)
class _Launched:
    pending: PendingStep
    finish: Callable[[PendingStep], StepResult]

    def result(self) -> StepResult:
        """See PendingStep.result."""
        return self.finish(self.pending)
