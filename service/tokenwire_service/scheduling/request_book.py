"""Live requests, what is due when, and the events they give rise to. Knows nothing of slots and blocks."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from tokenwire_service.core.events import (
    Admitted,
    Completed,
    EngineEvent,
    Failed,
    FailureReason,
    Finish,
    PromptScored,
    TokenLogprob,
    TokensGenerated,
)
from tokenwire_service.scheduling.lazy_heap import LazyHeap
from tokenwire_service.scheduling.sequence import RequestState, Sequence

FAILURE_MESSAGES: Mapping[FailureReason, str] = MappingProxyType(
    {
        FailureReason.DEADLINE_EXCEEDED: "the deadline passed before generation ended; allow more time or fewer tokens",
        FailureReason.QUEUE_TIMEOUT: "no place in the batch became free within the longest wait allowed; retry later",
        FailureReason.ABORTED_BY_OPERATOR: "an operator ended this request",
        FailureReason.ENGINE_FAILURE: "the engine failed; retry",
        FailureReason.ENGINE_DOWN: "the engine went down; retry later",
        FailureReason.DRAINING: "the server is shutting down; retry elsewhere",
        FailureReason.QUEUE_FULL: "the queue is full; retry later",
    }
)


class Timer(enum.Enum):
    """What happens to a request when one of its times comes."""

    TIME_LIMIT = "time_limit"
    DEADLINE = "deadline"
    QUEUE_DEADLINE = "queue_deadline"


class RequestBook:
    """Every request from `open` until exactly one ending: `end_candidate` of its last one, `fail` or `forget`.

    `now` is the latest time the scheduler was told; endings that come without a time of their own use it.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.num_live_candidates = 0
        self.num_generated_tokens = 0
        self.num_draft_tokens = 0
        self.num_accepted_draft_tokens = 0
        self._states: dict[str, RequestState] = {}
        self._timers: LazyHeap[tuple[RequestState, Timer]] = LazyHeap(_is_pending)
        self._events: list[EngineEvent] = []

    def __len__(self) -> int:
        return len(self._states)

    def get(self, request_id: str) -> RequestState | None:
        return self._states.get(request_id)

    def states(self) -> list[RequestState]:
        return list(self._states.values())

    def take_events(self) -> list[EngineEvent]:
        events, self._events = self._events, []
        return events

    def next_due(self) -> tuple[float, RequestState, Timer] | None:
        """The earliest time that still matters. Acting on it ends the request, which removes it."""
        head = self._timers.peek()
        return None if head is None else (head[0], *head[1])

    def open(self, state: RequestState) -> None:
        self._states[state.request.request_id] = state
        self.num_live_candidates += state.num_live
        for timer, time in _times(state).items():
            self._timers.push(time, (state, timer))

    def admit(self, state: RequestState, cached_prompt_tokens: int) -> None:
        """Report the first scheduling, once."""
        if state.admitted_time is not None:
            return
        state.admitted_time = self.now
        state.cached_prompt_tokens = cached_prompt_tokens
        if state.request.queue_deadline is not None:
            self._timers.note_stale()
        queue_time_s = max(0.0, self.now - state.request.arrival_time)
        self._events.append(Admitted(state.request.request_id, cached_prompt_tokens, queue_time_s))

    def prompt_scored(self, sequence: Sequence, offset: int, logprobs: tuple[TokenLogprob, ...]) -> None:
        """Report scores of prompt positions from `offset` on, except those reported before a preemption."""
        fresh = logprobs[max(0, sequence.num_scored_tokens - offset) :]
        if fresh:
            self._events.append(PromptScored(sequence.request.request_id, sequence.num_scored_tokens, fresh))
            sequence.num_scored_tokens += len(fresh)

    def tokens_generated(
        self,
        sequence: Sequence,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        finish: Finish | None,
    ) -> None:
        state = sequence.state
        if state.first_token_time is None:
            state.first_token_time = self.now
        self.num_generated_tokens += len(token_ids)
        self._events.append(TokensGenerated(state.request.request_id, sequence.index, token_ids, logprobs, finish))

    def draft_verified(self, state: RequestState, num_drafted: int, num_accepted: int) -> None:
        """Count guesses; `num_accepted` of them became tokens of the output."""
        state.num_draft_tokens += num_drafted
        state.num_accepted_draft_tokens += num_accepted
        self.num_draft_tokens += num_drafted
        self.num_accepted_draft_tokens += num_accepted

    def finish_reported(self, sequence: Sequence, finish: Finish) -> None:
        """Report an end that comes with no token."""
        self.admit(sequence.state, 0)
        self._events.append(TokensGenerated(sequence.request.request_id, sequence.index, (), finish=finish))

    def end_candidate(self, state: RequestState) -> None:
        """One candidate ended well; the last one completes the request."""
        state.num_live -= 1
        self.num_live_candidates -= 1
        if state.live:
            return
        self.admit(state, 0)
        self._close(state)
        self._events.append(self._completed(state))

    def fail(self, state: RequestState, reason: FailureReason, message: str = "") -> None:
        """`message` replaces the reason's usual one."""
        self.forget(state)
        message = message or FAILURE_MESSAGES[reason]
        self._events.append(Failed(state.request.request_id, reason, message, state.num_generated_tokens))

    def forget(self, state: RequestState) -> None:
        """End a request that nobody waits for any more: nothing is reported."""
        self.num_live_candidates -= state.num_live
        state.num_live = 0
        self._close(state)

    def _close(self, state: RequestState) -> None:
        del self._states[state.request.request_id]
        num_pending = sum(timer is not Timer.QUEUE_DEADLINE or state.admitted_time is None for timer in _times(state))
        self._timers.note_stale(num_pending)

    def _completed(self, state: RequestState) -> Completed:
        request = state.request
        admitted = self.now if state.admitted_time is None else state.admitted_time
        first_token = admitted if state.first_token_time is None else state.first_token_time
        return Completed(
            request_id=request.request_id,
            prompt_tokens=len(request.prompt_token_ids),
            cached_prompt_tokens=state.cached_prompt_tokens,
            completion_tokens=state.num_generated_tokens,
            queue_time_s=max(0.0, admitted - request.arrival_time),
            prefill_time_s=first_token - admitted,
            total_time_s=max(0.0, self.now - request.arrival_time),
            num_preemptions=state.num_preemptions,
            draft_tokens=state.num_draft_tokens,
            accepted_draft_tokens=state.num_accepted_draft_tokens,
        )


def _times(state: RequestState) -> dict[Timer, float]:
    request = state.request
    time_limit_s = request.stopping.time_limit_s
    times = {
        Timer.TIME_LIMIT: None if time_limit_s is None else request.arrival_time + time_limit_s,
        Timer.DEADLINE: request.deadline,
        Timer.QUEUE_DEADLINE: request.queue_deadline,
    }
    return {timer: time for timer, time in times.items() if time is not None}


def _is_pending(item: tuple[RequestState, Timer]) -> bool:
    state, timer = item
    return state.live and (timer is not Timer.QUEUE_DEADLINE or state.admitted_time is None)
