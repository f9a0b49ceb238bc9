"""From a plan and the slots to the tensors of one forward pass. Shapes: T packed tokens, S rows, R draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwire_service.layers.batch import AttentionBatch, KeptTokens
from tokenwire_service.runner.device_slots import DeviceSlots, SlotWrites
from tokenwire_service.runner.slots import SlotState
from tokenwire_service.runner.step_rows import StepRows
from tokenwire_service.runner.transfer import upload_all


@dataclass(frozen=True, slots=True)
class Draws:
    """The tokens a step draws, on the host."""

    per_row: NDArray[np.int64]
    """[S]: how many of them each row draws; a row with a draft draws at each of its tokens."""
    tokens: NDArray[np.int64]
    """[R]: packed token whose logits are drawn from."""
    slots: NDArray[np.int64]
    """[R]."""
    positions: NDArray[np.int64]
    """[R]: position of the drawn token."""
    appended: NDArray[np.int64]
    """[R]: slot whose next token it is; -1 in a row with a draft, of which that is not known yet."""

    @classmethod
    def of(cls, rows: StepRows) -> Draws:
        drawn = np.where(rows.samples, 1 + rows.num_drafts, 0)
        row_of = np.repeat(np.arange(len(rows)), drawn)
        # Counted from the row's last draw, whose logits are its last token's.
        back = np.repeat(np.cumsum(drawn), drawn) - 1 - np.arange(len(row_of))
        slots = rows.slots[row_of]
        return cls(
            per_row=drawn,
            tokens=np.cumsum(rows.counts)[row_of] - 1 - back,
            slots=slots,
            positions=rows.ends[row_of] - back,
            appended=np.where(rows.num_drafts[row_of] == 0, slots, -1),
        )


@dataclass(frozen=True, slots=True)
class DrawTensors:
    """The tokens a step draws, on the device. All int32 [R]."""

    slots: Tensor
    positions: Tensor
    appended: Tensor
    """See Draws."""


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's flat batch, on the device."""

    input_ids: Tensor
    """int64 [T]."""
    positions: Tensor
    """int64 [T]."""
    attention: AttentionBatch
    kept: KeptTokens
    """The tokens whose logits are drawn from."""
    draws: DrawTensors


def build_forward_batch(
    rows: StepRows, draws: Draws, writes: SlotWrites, state: SlotState, slots: DeviceSlots
) -> ForwardBatch:
    """Brings `slots` up to date with `writes` and reads the tokens from them. `state` has the plan applied."""
    token_slots = np.repeat(rows.slots, rows.counts)
    query_start_loc = np.concatenate(([0], np.cumsum(rows.counts)))
    positions = np.arange(query_start_loc[-1]) + np.repeat(rows.starts - query_start_loc[:-1], rows.counts)
    blocks, offsets = np.divmod(positions, state.block_size)
    slot_mapping = state.block_tables[token_slots, blocks].astype(np.int64) * state.block_size + offsets
    cells, values = writes.arrays()
    token_cells = token_slots * state.layout.max_tokens + positions
    device = slots.token_ids.device
    there = upload_all(
        [
            *(cells, values, token_cells, positions, slot_mapping, rows.slots, rows.ends, query_start_loc),
            *(draws.tokens, draws.slots, draws.positions, draws.appended),
            np.concatenate(([0], np.cumsum(draws.per_row))),
        ],
        device,
    )
    slots.write(there[0], there[1])
    attention = AttentionBatch(
        query_start_loc=there[7],
        seq_lens=there[6],
        # Whole rows: a width that changed from step to step would change what the kernels are compiled for.
        block_tables=slots.block_tables.index_select(0, there[5]),
        slot_mapping=there[4].long(),
        max_query_len=int(rows.counts.max()),
        max_seq_len=int(rows.ends.max()),
    )
    return ForwardBatch(
        input_ids=slots.token_ids.view(-1).index_select(0, there[2]).to(torch.int64),
        positions=there[3].long(),
        attention=attention,
        kept=KeptTokens(there[8].long(), there[12]),
        draws=DrawTensors(slots=there[9], positions=there[10], appended=there[11]),
    )
