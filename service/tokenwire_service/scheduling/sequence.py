"""The engine's mutable state: one Sequence per candidate, one RequestState per request."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tokenwire_service.core.params import Request

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
    """One candidate. Positions below `num_confirmed_tokens` are in the KV cache; those from there up to
    `num_computed_tokens` are being computed by steps in flight."""

    state: RequestState
    index: int
    rank: Rank
    token_ids: list[int]
    """Prompt, then the generated tokens that are known."""
    num_prompt_tokens: int
    max_num_tokens: int
    """Prompt + max_tokens."""
    status: SequenceStatus = SequenceStatus.HELD
    slot: int = -1
    """Meaningful while RUNNING."""
    epoch: int = 0
    """Grows when the sequence leaves its slot: results of steps planned before that are dropped."""
    num_computed_tokens: int = 0
    num_confirmed_tokens: int = 0
    num_pending_tokens: int = 0
    """Tokens being drawn by steps in flight: their positions exist, their ids are not known yet."""
    num_scored_tokens: int = 0
    """Leading prompt positions whose log-probabilities are not owed (any more): all, unless the request asked for
    them and this is its leader, which alone reports them; position 0 never has one."""
    num_waiting_tokens: int = 0
    """Tokens not in the prefix cache when it began to wait; 0 when not waiting."""
    looked_up: bool = False
    """True once its first table was counted in the prefix-cache statistics."""
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """Digest of each leading full block, as far as they were needed."""
    num_published_blocks: int = 0
    """Leading blocks already offered to the prefix cache."""

    @property
    def request(self) -> Request:
        return self.state.request

    @property
    def num_tokens(self) -> int:
        """Tokens whose position is taken, those being drawn included."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def wants_prompt_scores(self) -> bool:
        return self.num_scored_tokens < self.num_prompt_tokens

    @property
    def reads_cache(self) -> bool:
        return not self.state.request.cache.bypass and not self.wants_prompt_scores

    def leave_slot(self, status: SequenceStatus) -> None:
        """Forget everything that lived on the device; blocks are released by the BlockManager before."""
        self.status = status
        self.slot = -1
        self.epoch += 1
        self.num_computed_tokens = 0
        self.num_confirmed_tokens = 0
        self.num_pending_tokens = 0


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
    prompt = request.prompt_token_ids
    state = RequestState(request, num_live=request.num_candidates)
    for index in range(request.num_candidates):
        rank = (aged, deadline, request.arrival_time, order, index)
        sequence = Sequence(state, index, rank, list(prompt), len(prompt), len(prompt) + request.stopping.max_tokens)
        sequence.num_scored_tokens = 1 if index == 0 and request.prompt_logprobs is not None else len(prompt)
        state.sequences.append(sequence)
    return state
