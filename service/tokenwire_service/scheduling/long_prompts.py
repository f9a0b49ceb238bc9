"""Prompts too long for one step: the part of each step they get beside others, in tokens or in layers of a chunk."""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from tokenwire_service.scheduling.limits import SchedulerLimits
from tokenwire_service.scheduling.pace import Pace, StepLoad
from tokenwire_service.scheduling.plan import StepPlan
from tokenwire_service.scheduling.sequence import Sequence

_LAYERED_TOKENS = 64
"""Of a chunk that goes through a few layers a step: so many share the reading of weights and keys, and one layer of so
many is a small part of a step."""


class LongPrompts:
    """Where a step has room for fewer than `_LAYERED_TOKENS` of them, as many go through a few layers instead: a chunk
    of few tokens reads all that came before it, and all weights, for little."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self._pace = Pace(limits.max_decode_slowdown, limits.max_batch_prefill_tokens)

    def learn(self, load: StepLoad, seconds: float) -> None:
        """See Pace.learn."""
        self._pace.learn(load, seconds)

    def owns(self, sequence: Sequence) -> bool:
        return self._limits.is_long(sequence.num_tokens)

    def bound(self, plan: StepPlan, candidates: Ordered[Sequence]) -> None:
        """Set what long prompts share of a step in which others decode, or short prompts are computed; `candidates` are
        those with something to compute besides."""
        plan.num_decode_tokens = plan.num_tokens
        has_short_prompts = not all(map(self.owns, candidates))
        if candidates and (plan.rows or has_short_prompts):
            bound = self._pace.long_prompt_tokens(plan.num_tokens, beside_short_prompts=has_short_prompts)
            plan.long_budget = min(float(plan.budget), bound)

    def prefill(self, plan: StepPlan, sequence: Sequence) -> None:
        """Compute what the step has room for of its tokens, or of its chunk's layers."""
        left = sequence.num_tokens - sequence.num_computed_tokens
        if chunk := self._chunk_by_layers(plan, sequence, left):
            self._prefill_layers(plan, sequence, chunk)
        elif num_tokens := min(plan.budget, left, int(plan.long_budget)):
            plan.spend_on_long(num_tokens)
            plan.compute(sequence, num_tokens)

    def _chunk_by_layers(self, plan: StepPlan, sequence: Sequence, left: int) -> int:
        """Tokens of the chunk that goes through a few layers a step, begun or not; 0 when all layers are to be next.
        The last token, which draws, always goes through all at once."""
        room = min(plan.long_budget, plan.budget)
        if sequence.num_chunk_tokens or self._limits.num_layers < 2 or room >= min(_LAYERED_TOKENS, left):
            return sequence.num_chunk_tokens
        return 0 if sequence.wants_prompt_scores else min(_LAYERED_TOKENS, plan.budget, left - 1)

    def _prefill_layers(self, plan: StepPlan, sequence: Sequence, chunk: int) -> None:
        """As many layers as there is room for; one at least when no long prompt has had anything of this step."""
        num_layers = self._limits.num_layers
        possible = int(plan.long_budget * num_layers / chunk)
        least = int(plan.long_budget > 0 and not plan.num_long_prompt_tokens)
        if more := max(possible, least):
            plan.compute_layers(sequence, chunk, min(sequence.num_chunk_layers + more, num_layers), num_layers)
