"""From a plan and the slots to the tensors of one forward pass. Shapes: T packed tokens, S rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwire_service.layers.batch import AttentionBatch
from tokenwire_service.runner.slots import SlotState
from tokenwire_service.scheduling.output import ScheduledSlot


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's flat batch."""

    input_ids: Tensor
    """int64 [T]."""
    positions: Tensor
    """int64 [T]."""
    attention: AttentionBatch
    slots: NDArray[np.int64]
    """[S]: slot of each row."""
    query_start_loc: NDArray[np.int64]
    """[S + 1], on the host."""
    sampled_rows: NDArray[np.int64]
    """Rows that draw a token; each from its last packed token."""

    @property
    def sampled_tokens(self) -> NDArray[np.int64]:
        """Packed index each sampled row's logits come from."""
        return self.query_start_loc[self.sampled_rows + 1] - 1


def build_forward_batch(
    scheduled: tuple[ScheduledSlot, ...], state: SlotState, block_size: int, device: torch.device
) -> ForwardBatch:
    """`scheduled` is not empty, and `state` has the plan applied. Raises ValueError when the two disagree."""
    columns = np.array([(row.slot, row.start, row.num_tokens, row.samples) for row in scheduled], dtype=np.int64)
    slots, starts, counts, samples = columns.T
    ends = starts + counts
    _check(state, slots, ends, samples, block_size)
    query_start_loc = np.zeros(len(slots) + 1, dtype=np.int64)
    np.cumsum(counts, out=query_start_loc[1:])
    token_slots = np.repeat(slots, counts)
    positions = np.arange(query_start_loc[-1]) + np.repeat(starts - query_start_loc[:-1], counts)
    blocks, offsets = np.divmod(positions, block_size)
    slot_mapping = state.block_tables[token_slots, blocks].astype(np.int64) * block_size + offsets
    max_seq_len = int(ends.max())
    tables = state.block_tables[slots, : -(-max_seq_len // block_size)]
    attention = AttentionBatch(
        query_start_loc=torch.from_numpy(query_start_loc.astype(np.int32)).to(device),
        seq_lens=torch.from_numpy(ends.astype(np.int32)).to(device),
        block_tables=torch.from_numpy(np.ascontiguousarray(tables)).to(device),
        slot_mapping=torch.from_numpy(slot_mapping).to(device),
        max_query_len=int(counts.max()),
        max_seq_len=max_seq_len,
    )
    return ForwardBatch(
        input_ids=torch.from_numpy(state.token_ids[token_slots, positions].astype(np.int64)).to(device),
        positions=torch.from_numpy(positions).to(device),
        attention=attention,
        slots=slots,
        query_start_loc=query_start_loc,
        sampled_rows=np.flatnonzero(samples),
    )


def _check(
    state: SlotState,
    slots: NDArray[np.int64],
    ends: NDArray[np.int64],
    samples: NDArray[np.int64],
    block_size: int,
) -> None:
    held = state.num_tokens[slots]
    if (ends > held).any() or ((ends != held) & (samples == 1)).any():
        raise ValueError("the plan computes tokens its slots do not hold")
    if (ends > state.num_blocks[slots] * block_size).any():
        raise ValueError("the plan computes tokens its slots have no blocks for")
