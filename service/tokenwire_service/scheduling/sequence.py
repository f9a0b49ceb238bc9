"""The engine's mutable state: one Sequence per candidate, one RequestState per request."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tokenwire_service.core.events import Finish, FinishReason
from tokenwire_service.core.params import Request
from tokenwire_service.scheduling.prompt_lookup import Drafter

Rank = tuple[int, float, float, int, int]
"""Sorts sequences, most urgent first: aged priority, deadline, arrival, order of adding, candidate index."""


class SequenceStatus(enum.Enum):
    HELD = "held"
    """Waits for its request's leader to compute the prompt both share."""
    WAITING = "waiting"
    RUNNING = "running"
    """Has a slot and blocks."""
    ENDED = "ended"


@dataclass(eq=False, slots=True)
class Sequence:
    """One candidate, with what every step reads of its request. Positions below `num_confirmed_tokens` are in the KV
    cache; those from there up to `num_computed_tokens` are being computed by steps in flight, and `num_chunk_tokens`
    beyond are on their way through the layers."""

    state: RequestState
    index: int
    rank: Rank
    token_ids: list[int]
    """Prompt, then the generated tokens that are known."""
    num_prompt_tokens: int
    max_num_tokens: int
    """Prompt + max_tokens."""
    num_tokens: int
    """Tokens whose position is taken: the known ones and those being drawn by steps in flight."""
    stop_token_ids: frozenset[int]
    draft_from: int | None
    """Length from which on its next tokens may be guessed; None is never."""
    status: SequenceStatus = SequenceStatus.HELD
    slot: int = -1
    """Meaningful while RUNNING."""
    epoch: int = 0
    """Grows when the sequence leaves its slot: results of steps planned before that are dropped."""
    num_computed_tokens: int = 0
    num_confirmed_tokens: int = 0
    num_draft_tokens: int = 0
    """Guesses a step in flight verifies, from position `num_computed_tokens` on."""
    num_chunk_tokens: int = 0
    """Tokens from there on that are being computed a few layers a step; 0 is none."""
    num_chunk_layers: int = 0
    """Layers planned for them so far."""
    num_scored_tokens: int = 0
    """Leading prompt positions whose log-probabilities are not owed (any more): all, unless the request asked for
    them and this is its leader, which alone reports them; position 0 never has one."""
    num_waiting_tokens: int = 0
    """Tokens not in the prefix cache when it began to wait; 0 when not waiting."""
    looked_up: bool = False
    """True once its first table was counted in the prefix-cache statistics."""
    drafter: Drafter | None = None
    """Made when it is first used; never while out of the batch."""
    block_ids: list[int] = field(default_factory=list)
    capacity: int = 0
    """Tokens its blocks hold."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Digest of each leading full block, as far as they were needed."""
    num_published_tokens: int = 0
    """Tokens in leading blocks already offered to the prefix cache."""

    @property
    def request(self) -> Request:
        return self.state.request

    @property
    def num_pending_tokens(self) -> int:
        """Tokens being drawn by steps in flight: their positions exist, their ids are not known yet."""
        return self.num_tokens - len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def wants_prompt_scores(self) -> bool:
        return self.num_scored_tokens < self.num_prompt_tokens

    @property
    def reads_cache(self) -> bool:
        return not self.state.request.cache.bypass and not self.wants_prompt_scores

    def append_token(self, token_id: int) -> Finish | None:
        """A token that was being drawn is known; how it ends the candidate, if it does."""
        self.token_ids.append(token_id)
        if token_id in self.stop_token_ids:
            return Finish(FinishReason.STOP, token_id)
        if len(self.token_ids) < self.max_num_tokens:
            return None
        limited = self.state.request.stopping.context_limited
        return Finish(FinishReason.CONTEXT_LENGTH if limited else FinishReason.MAX_TOKENS)

    def leave_slot(self, status: SequenceStatus) -> None:
        """Forget everything that lived on the device; blocks are released by the BlockManager before."""
        self.status = status
        self.slot = -1
        self.epoch += 1
        self.num_computed_tokens = 0
        self.num_confirmed_tokens = 0
        self.num_tokens = len(self.token_ids)
        self.num_draft_tokens = 0
        self.num_chunk_tokens = self.num_chunk_layers = 0
        self.drafter = None

    def check_integrity(self) -> None:
        """Raises AssertionError when its counts disagree."""
        assert self.num_tokens >= len(self.token_ids), "fewer tokens than are known"
        if self.status is not SequenceStatus.RUNNING:
            assert not self.block_ids, "blocks held by a sequence that does not run"
            assert self.num_computed_tokens == self.num_pending_tokens == 0, "tokens in flight of no slot"
            assert self.num_draft_tokens == 0, "guesses in flight of no slot"
            assert self.num_chunk_tokens == 0, "a chunk of no slot"
            return
        assert self.num_published_tokens <= self.num_confirmed_tokens, "published before it was computed"
        assert self.num_confirmed_tokens <= self.num_computed_tokens, "confirmed before it was planned"
        assert self.num_computed_tokens + self.num_draft_tokens <= self.capacity, "computed past its blocks"
        assert self.num_computed_tokens + self.num_chunk_tokens < self.num_tokens, "computed more tokens than there are"
        assert bool(self.num_chunk_tokens) == bool(self.num_chunk_layers), "a chunk without layers or layers without"
        assert self.num_tokens + self.num_draft_tokens <= self.max_num_tokens, "longer than asked for"


@dataclass(eq=False, slots=True)
class RequestState:
    """One request and its candidates. Times are seconds on the machine's monotonic clock."""

    request: Request
    sequences: list[Sequence] = field(default_factory=list)
    num_live: int = 0
    """Candidates that have not ended; 0 once the request ended for whatever reason."""
    admitted_time: float | None = None
    """When a candidate was first scheduled."""
    first_token_time: float | None = None
    cached_prompt_tokens: int = 0
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0

    @property
    def live(self) -> bool:
        return self.num_live > 0

    @property
    def num_generated_tokens(self) -> int:
        return sum(sequence.num_generated_tokens for sequence in self.sequences)

    def live_sequences(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence.status is not SequenceStatus.ENDED]


def make_request_state(request: Request, order: int, ageing_interval_s: float) -> RequestState:
    """Candidates of `request`, all HELD. `order` is the number of requests added before.

    Ageing: all who wait gain priority at the same rate, so their mutual order never changes and the rank can be fixed
    at arrival. A request of priority p is overtaken by one of priority q only if that arrived less than
    (q - p + 1) ageing intervals later.
    """
    aged = int(request.arrival_time // ageing_interval_s) - request.priority
    deadline = float("inf") if request.deadline is None else request.deadline
    prompt, stopping = request.prompt_token_ids, request.stopping
    draft_from = len(prompt) + stopping.min_tokens if _draws_anywhere(request) else None
    state = RequestState(request, num_live=request.num_candidates)
    for index in range(request.num_candidates):
        rank = (aged, deadline, request.arrival_time, order, index)
        sequence = Sequence(
            state,
            index,
            rank,
            token_ids=list(prompt),
            num_prompt_tokens=len(prompt),
            max_num_tokens=len(prompt) + stopping.max_tokens,
            num_tokens=len(prompt),
            stop_token_ids=stopping.stop_token_ids,
            draft_from=draft_from,
        )
        sequence.num_scored_tokens = 1 if index == 0 and request.prompt_logprobs is not None else len(prompt)
        state.sequences.append(sequence)
    return state


def _draws_anywhere(request: Request) -> bool:
    """Whether several tokens may be drawn in one step: penalties depend on the tokens drawn just before."""
    sampling = request.sampling
    penalties = (sampling.presence_penalty, sampling.frequency_penalty, sampling.context_frequency_penalty)
    return request.logprobs is None and not any(penalties) and sampling.repetition_penalty == 1.0
