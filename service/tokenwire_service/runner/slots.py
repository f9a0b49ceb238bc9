"""Slot-indexed state that lives as long as the runner; a step's plan brings only what changed."""

from __future__ import annotations

import numpy as np

from tokenwire_service.runner.sampling_rows import SamplingRows
from tokenwire_service.runner.sizing import EngineSizes
from tokenwire_service.scheduling.output import SchedulerOutput, SlotJoin


class SlotState:
    """Tokens, block tables and sampling parameters of each slot. Arrays are indexed by slot."""

    def __init__(self, sizes: EngineSizes, vocab_size: int) -> None:
        slots = sizes.max_num_sequences
        # One more than the longest sequence: the runner may draw a token past an end it has not heard of.
        self.token_ids = np.zeros((slots, sizes.max_total_tokens + 1), dtype=np.int32)
        self.num_tokens = np.zeros(slots, dtype=np.int64)
        """Prompt and generated tokens the slot holds; 0 when nobody is in it."""
        self.num_prompt_tokens = np.zeros(slots, dtype=np.int64)
        self.block_tables = np.zeros((slots, sizes.max_blocks_per_sequence), dtype=np.int32)
        self.num_blocks = np.zeros(slots, dtype=np.int64)
        self.sampling = SamplingRows(slots, vocab_size)
        self._vocab_size = vocab_size

    def apply(self, output: SchedulerOutput) -> None:
        """Leaves, joins, new blocks, in this order."""
        for slot in output.leaves:
            self.num_tokens[slot] = self.num_blocks[slot] = 0
            self.sampling.clear(slot)
        for join in output.joins:
            self._join(join)
        for row in output.scheduled:
            if row.new_block_ids:
                self._append_blocks(row.slot, row.new_block_ids)

    def append_token(self, slot: int, token_id: int) -> None:
        """The slot drew a token."""
        self.token_ids[slot, self.num_tokens[slot]] = token_id
        self.num_tokens[slot] += 1
        self.sampling.append_token(slot, token_id)

    def _join(self, join: SlotJoin) -> None:
        slot, length = join.slot, len(join.token_ids)
        tokens = self.token_ids[slot]
        tokens[:length] = join.token_ids
        # A token outside the vocabulary would read another row's memory in the embedding.
        if length and not 0 <= int(tokens[:length].min()) <= int(tokens[:length].max()) < self._vocab_size:
            raise ValueError(f"slot {slot}: a token id is outside the vocabulary of {self._vocab_size}")
        self.num_tokens[slot] = length
        self.num_prompt_tokens[slot] = join.num_prompt_tokens
        self.num_blocks[slot] = 0
        self._append_blocks(slot, join.block_ids)
        self.sampling.set(join, tokens[: join.num_prompt_tokens], tokens[join.num_prompt_tokens : length])

    def _append_blocks(self, slot: int, block_ids: tuple[int, ...]) -> None:
        start = int(self.num_blocks[slot])
        self.block_tables[slot, start : start + len(block_ids)] = block_ids
        self.num_blocks[slot] = start + len(block_ids)
