"""A Scheduler and a FakeRunner in a loop with a clock, and a check of everything it told against `generate_alone`."""

from __future__ import annotations

from collections import deque

from tests.support.scheduling import (
    HASH_KEY,
    FakeRunner,
    Transcript,
    generate_alone,
    score_alone,
)
from tokenwire_service.core.events import Completed, EngineEvent, Failed, FailureReason, FinishReason
from tokenwire_service.core.params import Request
from tokenwire_service.scheduling.limits import SchedulerLimits
from tokenwire_service.scheduling.output import SchedulerOutput, StepResult
from tokenwire_service.scheduling.scheduler import Scheduler


class World:
    """`depth` steps are in flight at most; `check` makes every operation end with `check_integrity`."""

    def __init__(self, limits: SchedulerLimits, depth: int = 1, *, check: bool = True) -> None:
        self.limits = limits
        self.depth = depth
        self.check = check
        self.now = 0.0
        self.scheduler = Scheduler(limits, model_name="fake", hash_key=HASH_KEY)
        self.runner = FakeRunner(limits)
        self.in_flight: deque[tuple[SchedulerOutput, StepResult]] = deque()
        self.requests: dict[str, Request] = {}
        self.transcripts: dict[str, Transcript] = {}
        self.cancelled: set[str] = set()
        self.finished_early: set[tuple[str, int]] = set()
        self.outputs: list[SchedulerOutput] = []

    def add(self, request: Request) -> None:
        self.scheduler.add(request, self.now)
        self.requests[request.request_id] = request
        self.transcripts[request.request_id] = Transcript()
        self.settle()

    def cancel(self, request_id: str) -> None:
        if self.scheduler.abort(request_id, None):
            self.cancelled.add(request_id)
        self.settle()

    def abort(self, request_id: str) -> None:
        self.scheduler.abort(request_id, FailureReason.ABORTED_BY_OPERATOR)
        self.settle()

    def finish_candidate(self, request_id: str, index: int) -> None:
        if index not in self.transcripts[request_id].finishes:
            self.finished_early.add((request_id, index))
        self.scheduler.finish_candidate(request_id, index)
        self.settle()

    def step(self) -> SchedulerOutput:
        """Schedule one step; take in the oldest one's results once `depth` are in flight or nothing else is to do.
        As an engine does, it waits for steps in flight when the scheduler would rather know their tokens."""
        while self.in_flight and self.scheduler.wants_confirmed_tokens():
            self.update()
        output = self.scheduler.schedule(self.now)
        self.outputs.append(output)
        result = self.runner.execute(output)
        if output.scheduled:
            self.in_flight.append((output, result))
        self.settle()
        if self.in_flight and (len(self.in_flight) >= self.depth or not output.scheduled):
            self.update()
        return output

    def update(self) -> None:
        output, result = self.in_flight.popleft()
        self.take(self.scheduler.update(output, result, self.now))
        self.settle()

    def run(self, max_steps: int = 10_000, tick_s: float = 0.0) -> int:
        """Step until all is done; returns the number of steps."""
        for num_steps in range(max_steps):
            if not self.scheduler.has_work():
                return num_steps
            self.now += tick_s
            self.step()
        raise AssertionError("work does not end")

    def settle(self) -> None:
        self.take(self.scheduler.take_events())
        if self.check:
            self.scheduler.check_integrity()

    def take(self, events: list[EngineEvent]) -> None:
        for event in events:
            if event.request_id not in self.cancelled:
                self.transcripts[event.request_id].take(event)

    def assert_idle(self) -> None:
        assert not self.scheduler.has_work()
        self.scheduler.check_integrity()
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.waiting_tokens) == (0, 0, 0)
        assert stats.num_free_blocks == stats.num_blocks
        assert self.scheduler.next_deadline() is None

    def assert_transcripts(self) -> None:
        """Every request not cancelled ended once, with the tokens it would have had alone, or their beginning."""
        for request_id, transcript in self.transcripts.items():
            if request_id in self.cancelled:
                continue
            request = self.requests[request_id]
            match transcript.ending:
                case Completed():
                    self._assert_completed(request, transcript)
                case Failed(generated_tokens=generated):
                    self._assert_tokens(request, transcript)
                    told = sum(len(tokens) for tokens in transcript.tokens.values())
                    assert generated == told
                case None:
                    raise AssertionError(f"{request_id} never ended")

    def _assert_completed(self, request: Request, transcript: Transcript) -> None:
        self._assert_tokens(request, transcript)
        assert isinstance(transcript.ending, Completed)
        assert transcript.ending.completion_tokens == sum(len(tokens) for tokens in transcript.tokens.values())
        assert 0 <= transcript.ending.accepted_draft_tokens <= transcript.ending.draft_tokens
        assert transcript.ending.accepted_draft_tokens < max(1, transcript.ending.completion_tokens)
        for index in range(request.num_candidates):
            if (request.request_id, index) in self.finished_early:
                continue
            finish = transcript.finishes[index]
            if finish.reason is FinishReason.TIME_LIMIT:
                assert request.stopping.time_limit_s is not None
                continue
            expected, reason = generate_alone(request, index)
            assert tuple(transcript.tokens[index]) == expected
            assert finish.reason is reason
            assert finish.stop_token_id == (expected[-1] if reason is FinishReason.STOP else None)
        scores = score_alone(request) if request.prompt_logprobs is not None else ()
        leader_ran = bool(transcript.tokens.get(0)) and (request.request_id, 0) not in self.finished_early
        if leader_ran:
            assert tuple(transcript.scores) == scores
        assert tuple(transcript.scores) == scores[: len(transcript.scores)]

    def _assert_tokens(self, request: Request, transcript: Transcript) -> None:
        for index, tokens in transcript.tokens.items():
            expected, _ = generate_alone(request, index)
            assert tuple(tokens) == expected[: len(tokens)], f"{request.request_id}[{index}] got foreign tokens"
