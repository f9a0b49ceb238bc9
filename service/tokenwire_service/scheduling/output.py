"""What the scheduler decided for one step: the only thing that crosses from policy to execution.

Everything is host data (ints and tuples), so that rank 0 can flatten it into one int32 buffer for the other ranks.
A runner keeps slot-indexed state (token ids, block table, sampling parameters) and applies these deltas to it; the
tokens a slot generated are the runner's own knowledge and never travel back in a plan. Nothing here is changed once
made; what there is one of per row is not frozen, because making a frozen object takes five times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenwire_service.core.events import TokenLogprob
from tokenwire_service.core.params import LogprobsParams, SamplingParams


@dataclass(frozen=True, slots=True)
class SlotJoin:
    """A sequence enters `slot` (first time, or again after preemption)."""

    slot: int
    token_ids: tuple[int, ...]
    """Prompt, then tokens generated before a preemption."""
    num_prompt_tokens: int
    block_ids: tuple[int, ...]
    """Blocks it owns at entry (prefix-cache hits included)."""
    sampling: SamplingParams
    candidate_index: int
    """Second word of the RNG counter, after the position; the seed is the key (see kernels/sample/philox.py)."""
    end_token_ids: tuple[int, ...]
    """Masked while fewer than min_tokens were generated."""
    min_tokens: int
    logprobs: LogprobsParams | None
    prompt_logprobs: LogprobsParams | None


@dataclass(frozen=True, slots=True)
class LayerSpan:
    """The layers a chunk goes through in one step: from `first`, where the step before left it, to before `end`."""

    first: int
    end: int
    completes: bool
    """Whether there is none after `end`."""


@dataclass(slots=True)
class ScheduledSlot:
    """One row of the step's flat batch: `num_tokens` tokens of `slot` from position `start` on."""

    slot: int
    start: int
    """Position of the first token computed: the sequence's num_computed_tokens."""
    num_tokens: int
    new_block_ids: tuple[int, ...]
    """Blocks appended to the slot's table before this step (besides those of a SlotJoin in the same step)."""
    samples: bool
    """True when the chunk reaches the sequence's last token, so that a new token is drawn."""
    score_prompt: bool = False
    """True when prompt log-probabilities are wanted for this chunk."""
    draft_token_ids: tuple[int, ...] = ()
    """Guesses for the tokens after position `start`, computed in the same pass (`num_tokens` counts them). The row
    brings the drawn tokens up to and including the first that differs from its guess, or one more than the guesses
    when none does: they are the tokens that steps without a draft would have drawn."""
    layers: LayerSpan | None = None
    """None is all of them, in this step. Otherwise the chunk takes several steps, between which the runner keeps its
    hidden states; it counts as computed after the last of them, and neither samples nor scores."""


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step. Order of application: leaves, joins, new blocks, compute. Rows: decodes first, then prefills."""

    step_id: int
    leaves: tuple[int, ...]
    """Slots whose sequence ended or was preempted since the last step."""
    joins: tuple[SlotJoin, ...]
    scheduled: tuple[ScheduledSlot, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens computed this step, those that go through some layers included."""
        return sum(row.num_tokens for row in self.scheduled)


@dataclass(slots=True)
class SlotResult:
    """What one scheduled slot brought: drawn tokens, prompt log-probabilities, or a failure of this slot alone."""

    slot: int
    token_ids: tuple[int, ...] = ()
    """Tokens drawn this step, one unless the row had a draft; empty when the row does not sample."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids` when the slot asked for them."""
    prompt_offset: int = 0
    """Prompt position of the first of `prompt_logprobs`."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    failure: str = ""
    """Set when the slot's computation went wrong: its request ends ENGINE_FAILURE with this message."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The results of one step, one entry for each row of `SchedulerOutput.scheduled` that sampled or scored."""

    step_id: int
    slots: tuple[SlotResult, ...]
