"""Slot state on the device, in Triton. Shapes as in the package's public functions."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type, call-arg"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tokenwire_service.kernels.advance.inputs import DecodeInputs

ROWS = 128
"""Rows that one program advances."""
COLUMNS = 1024
"""Entries of a block table that one program copies."""


@triton.jit(do_not_specialize=["num_rows"])
def advance_kernel(
    sampled_ids, slots, last_token, positions, seq_lens, token_ids, num_rows, max_len, ROWS: tl.constexpr
):
    """One program: ROWS of the S rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(slots + row, mask=row < num_rows, other=-1).to(tl.int64)
    live = slot >= 0
    token = tl.load(sampled_ids + row, mask=live, other=0).to(tl.int32)
    position = tl.load(positions + slot, mask=live, other=0)
    at = tl.load(seq_lens + slot, mask=live, other=0)
    tl.store(last_token + slot, token, mask=live)
    tl.store(token_ids + slot * max_len + at, token, mask=live & (at < max_len))
    tl.store(positions + slot, position + 1, mask=live)
    tl.store(seq_lens + slot, at + 1, mask=live)


@triton.jit
def gather_decode_inputs_kernel(
    slots,
    last_token,
    positions,
    seq_lens,
    block_tables,
    out_input_ids,
    out_positions,
    out_seq_lens,
    out_slot_mapping,
    out_block_tables,
    block_size,
    max_blocks,
    COLUMNS: tl.constexpr,
):
    """One program: COLUMNS of one row's block table; the first of them writes the row's other inputs too."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    live = slot >= 0
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < max_blocks
    table = tl.load(block_tables + slot * max_blocks + column, mask=inside & live, other=0)
    tl.store(out_block_tables + row * max_blocks + column, table, mask=inside)
    if tl.program_id(1) == 0:
        position = tl.load(positions + slot, mask=live, other=0).to(tl.int64)
        at = position // block_size
        placed = live & (at < max_blocks)
        block = tl.load(block_tables + slot * max_blocks + at, mask=placed, other=0).to(tl.int64)
        place = tl.where(placed, block * block_size + position % block_size, -1)
        tl.store(out_input_ids + row, tl.load(last_token + slot, mask=live, other=0).to(tl.int64))
        tl.store(out_positions + row, position)
        tl.store(out_seq_lens + row, tl.load(seq_lens + slot, mask=live, other=0))
        tl.store(out_slot_mapping + row, place)


def advance(
    sampled_ids: Tensor, slots: Tensor, last_token: Tensor, positions: Tensor, seq_lens: Tensor, token_ids: Tensor
) -> None:
    """Appends the sampled tokens to their sequences, in place."""
    if num_rows := len(slots):
        advance_kernel[(triton.cdiv(num_rows, ROWS),)](
            sampled_ids, slots, last_token, positions, seq_lens, token_ids, num_rows, token_ids.shape[1], ROWS
        )


def gather_decode_inputs(
    slots: Tensor,
    last_token: Tensor,
    positions: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    block_size: int,
    out: DecodeInputs,
) -> None:
    """Each row's input token, position, length, place in the blocks and block table, into `out`."""
    max_blocks = block_tables.shape[1]
    if not len(slots):
        return
    gather_decode_inputs_kernel[(len(slots), triton.cdiv(max_blocks, COLUMNS))](
        slots,
        last_token,
        positions,
        seq_lens,
        block_tables,
        out.input_ids,
        out.positions,
        out.seq_lens,
        out.slot_mapping,
        out.block_tables,
        block_size,
        max_blocks,
        COLUMNS,
    )
