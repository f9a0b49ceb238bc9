"""What the host knows of each slot, as long as the runner lives; a step's plan brings only what changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenwire_service.runner.device_slots import SlotLayout, SlotWrites
from tokenwire_service.runner.sampling_rows import SamplingRows, SlotSampling
from tokenwire_service.runner.sizing import EngineSizes
from tokenwire_service.runner.step_rows import StepRows
from tokenwire_service.scheduling.output import SchedulerOutput, SlotJoin


@dataclass(frozen=True, slots=True)
class _Correction:
    """The tokens a row with a draft turned out to bring."""

    slot: int
    owner: SlotSampling
    """The slot's parameters when the row was planned: they change when its sequence does."""
    position: int
    token_ids: NDArray[np.int32]


class SlotState:
    """Lengths, block tables and sampling parameters of each slot. Arrays are indexed by slot. The tokens themselves
    are on the device alone."""

    def __init__(self, sizes: EngineSizes, vocab_size: int) -> None:
        slots = sizes.max_num_sequences
        self.layout = SlotLayout.of(sizes)
        self.num_tokens = np.zeros(slots, dtype=np.int64)
        """Prompt and generated tokens the slot holds, those being drawn included; 0 when nobody is in it. What a draft
        in flight brings is counted when it is known: no plan goes on from it before."""
        self.num_prompt_tokens = np.zeros(slots, dtype=np.int64)
        self.block_tables = np.zeros((slots, sizes.max_blocks_per_sequence), dtype=np.int32)
        self.num_blocks = np.zeros(slots, dtype=np.int64)
        self.sampling = SamplingRows(slots, vocab_size)
        self._vocab_size = vocab_size
        self.block_size = sizes.block_size
        self._corrections: list[_Correction] = []

    def apply(self, output: SchedulerOutput) -> SlotWrites:
        """Leaves, joins, new blocks, drafts, in this order; what of it the device must be told.

        Raises ValueError for a token outside the vocabulary, or more blocks or tokens than a slot has room for.
        """
        writes = SlotWrites(self.layout)
        self._correct(writes)
        for slot in output.leaves:
            self.num_tokens[slot] = self.num_blocks[slot] = 0
            self.sampling.clear(slot)
        for join in output.joins:
            self._join(join, writes)
        for row in output.scheduled:
            if row.new_block_ids:
                self._append_blocks(row.slot, row.new_block_ids, writes)
            if row.draft_token_ids:
                self._add_draft(row.slot, row.start + 1, row.draft_token_ids, writes)
        return writes

    def count(self, rows: StepRows) -> None:
        """Count the tokens the rows will draw as held. Raises ValueError when the slots lack what the rows compute."""
        slots, ends = rows.slots, rows.ends
        held = self.num_tokens[slots]
        if (ends > held).any() or ((ends != held) & rows.samples).any():
            raise ValueError("the plan computes tokens its slots do not hold")
        if (ends > self.num_blocks[slots] * self.block_size).any():
            raise ValueError("the plan computes tokens its slots have no blocks for")
        self.num_tokens[slots[rows.samples]] += 1

    def learn_draft(self, slot: int, owner: SlotSampling, position: int, token_ids: tuple[int, ...]) -> None:
        """What a row with a draft brought, from `position` on; the device is told with the next plan."""
        self._corrections.append(_Correction(slot, owner, position, np.array(token_ids, dtype=np.int32)))

    def _correct(self, writes: SlotWrites) -> None:
        for correction in self._corrections:
            if self.sampling.holds(correction.slot, correction.owner):
                writes.set_tokens(correction.slot, correction.position, correction.token_ids)
                self.num_tokens[correction.slot] = correction.position + len(correction.token_ids)
        self._corrections.clear()

    def _join(self, join: SlotJoin, writes: SlotWrites) -> None:
        slot, length = join.slot, len(join.token_ids)
        tokens = self._checked(slot, join.token_ids)
        if not 0 < length < self.layout.max_tokens:
            raise ValueError(f"slot {slot}: {length} tokens, there is room for 1 to {self.layout.max_tokens - 1}")
        self.num_tokens[slot] = length
        self.num_prompt_tokens[slot] = join.num_prompt_tokens
        self.num_blocks[slot] = 0
        writes.set_tokens(slot, 0, tokens)
        self._append_blocks(slot, join.block_ids, writes)
        self.sampling.set(join, tokens[: join.num_prompt_tokens], tokens[join.num_prompt_tokens :])
        self.sampling.write(slot, writes)

    def _append_blocks(self, slot: int, block_ids: tuple[int, ...], writes: SlotWrites) -> None:
        start = int(self.num_blocks[slot])
        end = start + len(block_ids)
        if end > self.layout.max_blocks:
            raise ValueError(f"slot {slot}: {end} blocks, there is room for {self.layout.max_blocks}")
        self.block_tables[slot, start:end] = block_ids
        self.num_blocks[slot] = end
        writes.append_blocks(slot, start, block_ids)

    def _add_draft(self, slot: int, position: int, token_ids: tuple[int, ...], writes: SlotWrites) -> None:
        end = position + len(token_ids)
        if end >= self.layout.max_tokens or position != self.num_tokens[slot]:
            raise ValueError(f"slot {slot}: a draft of positions {position} to {end} does not follow its tokens")
        writes.set_guesses(slot, position, self._checked(slot, token_ids))
        self.num_tokens[slot] = end

    def _checked(self, slot: int, token_ids: tuple[int, ...]) -> NDArray[np.int32]:
        """A token outside the vocabulary would read another row's memory in the embedding."""
        tokens = np.array(token_ids, dtype=np.int64)
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocab_size:
            raise ValueError(f"slot {slot}: a token id is outside the vocabulary of {self._vocab_size}")
        return tokens.astype(np.int32)
