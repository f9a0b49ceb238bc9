"""A step in the making, and one in flight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tokenwire_service.scheduling.output import LayerSpan, ScheduledSlot, SlotJoin
from tokenwire_service.scheduling.pace import StepLoad
from tokenwire_service.scheduling.sequence import Sequence


@dataclass(slots=True)
class StepPlan:
    """A step while it is being put together; `budget` tokens are left."""

    budget: int
    long_budget: float
    """What of it prompts too long for one step may take. A chunk counts by its share of the layers."""
    joins: list[SlotJoin] = field(default_factory=list)
    rows: list[ScheduledSlot] = field(default_factory=list)
    owners: list[tuple[Sequence, int]] = field(default_factory=list)
    """The sequence of each row, and its epoch."""
    num_tokens: int = 0
    """Planned so far; a chunk that goes through some layers counts by its share."""
    num_decode_tokens: int = 0
    num_other_tokens: int = 0
    num_long_prompt_tokens: float = 0.0
    """As in StepLoad."""

    @property
    def load(self) -> StepLoad:
        return StepLoad(self.num_decode_tokens, self.num_long_prompt_tokens, self.num_other_tokens)

    def compute(self, sequence: Sequence, num_tokens: int, new_block_ids: tuple[int, ...] = ()) -> None:
        """Add a row for the sequence's next `num_tokens` tokens and count them as computed."""
        start = sequence.num_computed_tokens
        end = start + num_tokens
        samples = end == sequence.num_tokens
        scores = sequence.num_scored_tokens < min(end + 1, sequence.num_prompt_tokens)
        self.rows.append(ScheduledSlot(sequence.slot, start, num_tokens, new_block_ids, samples, scores))
        self.owners.append((sequence, sequence.epoch))
        self._count(num_tokens)
        sequence.num_computed_tokens = end
        if samples:
            sequence.num_tokens += 1

    def compute_layers(self, sequence: Sequence, num_tokens: int, end: int, num_layers: int) -> None:
        """Add a row that takes the sequence's chunk of `num_tokens`, begun or not, on to layer `end`. With the last
        layer its tokens count as computed."""
        first, completes = sequence.num_chunk_layers, end == num_layers
        start, span = sequence.num_computed_tokens, LayerSpan(first, end, completes)
        self.rows.append(ScheduledSlot(sequence.slot, start, num_tokens, (), samples=False, layers=span))
        self.owners.append((sequence, sequence.epoch))
        share = num_tokens * (end - first) / num_layers
        self._count(min(math.ceil(share), self.budget))
        self.spend_on_long(share)
        sequence.num_chunk_tokens, sequence.num_chunk_layers = (0, 0) if completes else (num_tokens, end)
        sequence.num_computed_tokens += num_tokens if completes else 0

    def spend_on_long(self, num_tokens: float) -> None:
        """Count what of the step a long prompt takes."""
        self.num_long_prompt_tokens += num_tokens
        self.long_budget = max(self.long_budget - num_tokens, 0.0)

    def decode(self, sequence: Sequence, new_block_ids: tuple[int, ...], draft_token_ids: tuple[int, ...] = ()) -> None:
        """Add a row for the one known token not computed yet. It counts on one new token, whatever guesses go along."""
        start = sequence.num_computed_tokens
        num_drafts = len(draft_token_ids)
        self.rows.append(
            ScheduledSlot(sequence.slot, start, 1 + num_drafts, new_block_ids, True, False, draft_token_ids)
        )
        self.owners.append((sequence, sequence.epoch))
        self._count(1 + num_drafts)
        sequence.num_computed_tokens = start + 1
        sequence.num_tokens += 1
        sequence.num_draft_tokens = num_drafts

    def _count(self, num_tokens: int) -> None:
        self.budget -= num_tokens
        self.num_tokens += num_tokens


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A scheduled step whose results are awaited."""

    step_id: int
    start_time: float
    load: StepLoad
    owners: list[tuple[Sequence, int]]


def join_of(sequence: Sequence) -> SlotJoin:
    """What the runner must know of a sequence that has just got its slot and blocks."""
    request = sequence.request
    fresh = sequence.num_generated_tokens == 0
    return SlotJoin(
        slot=sequence.slot,
        token_ids=request.prompt_token_ids if fresh else tuple(sequence.token_ids),
        num_prompt_tokens=sequence.num_prompt_tokens,
        block_ids=tuple(sequence.block_ids),
        sampling=request.sampling,
        candidate_index=sequence.index,
        end_token_ids=tuple(sorted(request.stopping.stop_token_ids)),
        min_tokens=request.stopping.min_tokens,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs if sequence.index == 0 else None,
    )
