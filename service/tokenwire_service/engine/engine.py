"""The engine: messages in, one step, messages out. One thread owns everything mutable here and below."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenwire_service.core.events import EngineEvent, EngineStats, Failed, FailureReason
from tokenwire_service.core.params import Request
from tokenwire_service.errors import InvalidParameterError
from tokenwire_service.runner.executor import Executor, PendingStep
from tokenwire_service.scheduling.output import SchedulerOutput, SlotResult, StepResult
from tokenwire_service.scheduling.scheduler import Scheduler

_MAX_FAILED_STEPS = 3
"""Lost steps in a row after which the engine gives up."""
_BLOCKED_WAIT_S = 0.02
"""How long to wait for messages when there is work but nothing of it could be scheduled."""
_STEP_LOST = "the engine failed while computing this request; retry"


@dataclass(frozen=True, slots=True)
class Commands:
    """Messages that gathered since the last step, applied in the order of the fields."""

    submissions: tuple[Request, ...] = ()
    finished_candidates: tuple[tuple[str, int], ...] = ()
    closed: tuple[str, ...] = ()
    """Requests nobody waits for any more."""
    aborted: tuple[str, ...] = ()
    """Requests an operator ends."""
    flush_cache: bool = False
    stop: bool = False


class Inbox(Protocol):
    """Where others leave messages for the engine's thread."""

    def drain(self, timeout_s: float) -> Sequence[Commands]:
        """Everything that is there; when nothing is, wait up to `timeout_s` for something."""
        ...


Publish = Callable[[Sequence[EngineEvent], EngineStats], None]
"""Takes the events of a step and the snapshot after it; no events and no new step is a sign of life."""


class Engine:
    """Schedules and executes steps until told to stop."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        inbox: Inbox,
        publish: Publish,
        *,
        logger: logging.Logger,
        heartbeat_s: float = 1.0,
        max_steps_in_flight: int | None = None,
    ) -> None:
        """`max_steps_in_flight`: steps launched before the first of them is asked for its result. Unless given, 2 where
        the executor goes on by itself, so that it computes one while the results of the one before are dealt with."""
        self._scheduler = scheduler
        self._executor = executor
        self._inbox = inbox
        self._publish = publish
        self._logger = logger
        self._heartbeat_s = heartbeat_s
        self._max_in_flight = max_steps_in_flight or (2 if executor.runs_ahead else 1)
        self._in_flight: deque[tuple[SchedulerOutput, PendingStep]] = deque()
        self._events: list[EngineEvent] = []
        """Not published yet."""
        self._failed_steps = 0
        self._made_step = False
        self._checked = True
        self._stopping = False

    def run(self) -> None:
        """Step until a stop message. Raises whatever makes going on pointless."""
        while not self._stopping:
            self.step()

    def step(self) -> None:
        """Take in messages, plan a step, launch it, finish the oldest one in flight, tell what came of it."""
        batches = self._inbox.drain(self._patience())
        self._apply(batches)
        if self._scheduler.wants_confirmed_tokens():
            self._finish_all()
        launched = self._launch(self._scheduler.schedule(time.monotonic()))
        self._made_step = bool(self._in_flight)
        if len(self._in_flight) == self._max_in_flight or not launched:
            self._finish_oldest()
        events = self._take_events()
        self._publish(events, self._scheduler.stats())
        self._check_when_idle(idle=not (batches or events))

    def _check_when_idle(self, *, idle: bool) -> None:
        """Count every block once all is over and nobody came for a while: it takes milliseconds."""
        if self._scheduler.has_work() or not idle:
            self._checked = False
        elif not self._checked:
            self._scheduler.check_integrity()
            self._checked = True

    def _patience(self) -> float:
        """How long the inbox may keep the step waiting, in seconds."""
        if self._made_step and self._scheduler.has_work():
            return 0.0
        if self._scheduler.has_work():
            return _BLOCKED_WAIT_S
        return self._heartbeat_s

    def _apply(self, batches: Sequence[Commands]) -> None:
        now = time.monotonic()
        for commands in batches:
            for request in commands.submissions:
                self._add(request, now)
            for request_id, index in commands.finished_candidates:
                self._scheduler.finish_candidate(request_id, index)
            for request_id in commands.closed:
                self._scheduler.abort(request_id, None)
            for request_id in commands.aborted:
                self._scheduler.abort(request_id, FailureReason.ABORTED_BY_OPERATOR)
            if commands.flush_cache:
                self._scheduler.flush_cache()
            self._stopping = self._stopping or commands.stop

    def _add(self, request: Request, now: float) -> None:
        try:
            self._scheduler.add(request, now)
        except InvalidParameterError as error:
            self._events.append(Failed(request.request_id, FailureReason.ENGINE_FAILURE, error.message))

    def _launch(self, output: SchedulerOutput) -> bool:
        """Whether there is a step in flight now that was not before. A plan without rows brings nothing to wait for."""
        try:
            pending = self._executor.launch(output)
        except Exception:
            if self._is_beyond_help(output):
                raise
            pending = _LostStep(output)
        if output.scheduled:
            self._in_flight.append((output, pending))
        return bool(output.scheduled)

    def _finish_all(self) -> None:
        while self._in_flight:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        """Wait for the result of the oldest step in flight, if there is one, and take it in."""
        if self._in_flight:
            output, pending = self._in_flight.popleft()
            self._events += self._scheduler.update(output, self._result(output, pending), time.monotonic())

    def _take_events(self) -> list[EngineEvent]:
        events = self._events + self._scheduler.take_events()
        self._events = []
        return events

    def _result(self, output: SchedulerOutput, pending: PendingStep) -> StepResult:
        if isinstance(pending, _LostStep):
            return pending.result()
        try:
            result = pending.result()
        except Exception:
            if self._is_beyond_help(output):
                raise
            return _LostStep(output).result()
        self._failed_steps = 0
        return result

    def _is_beyond_help(self, output: SchedulerOutput) -> bool:
        """Called where a step raised. It is lost, and its requests fail; several in a row mean that the engine is
        broken."""
        self._failed_steps += 1
        self._logger.exception("step %d failed (%d in a row)", output.step_id, self._failed_steps)
        return self._failed_steps >= _MAX_FAILED_STEPS or not output.scheduled


class _LostStep:
    """A step that raised."""

    def __init__(self, output: SchedulerOutput) -> None:
        self._output = output

    def result(self) -> StepResult:
        slots = tuple(SlotResult(row.slot, failure=_STEP_LOST) for row in self._output.scheduled)
        return StepResult(self._output.step_id, slots)
