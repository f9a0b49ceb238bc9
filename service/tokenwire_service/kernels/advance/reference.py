"""Slot state on the device in plain PyTorch. Shapes as in the package's public functions."""

from __future__ import annotations

from torch import Tensor

from tokenwire_service.kernels.advance.inputs import DecodeInputs


def advance(
    sampled_ids: Tensor, slots: Tensor, last_token: Tensor, positions: Tensor, seq_lens: Tensor, token_ids: Tensor
) -> None:
    """Appends the sampled tokens to their sequences, in place."""
    live = slots >= 0
    slot, token = slots[live].long(), sampled_ids[live].int()
    at = seq_lens[slot]
    fits = at < token_ids.shape[1]
    token_ids[slot[fits], at[fits].long()] = token[fits]
    last_token[slot] = token
    positions[slot] += 1
    seq_lens[slot] = at + 1


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
    padded, slot = slots < 0, slots.clamp(min=0).long()
    position = positions[slot].long().masked_fill(padded, 0)
    tables = block_tables[slot].masked_fill(padded[:, None], 0)
    column = position // block_size
    placeless = padded | (column >= tables.shape[1])
    block = tables.gather(1, column.masked_fill(placeless, 0)[:, None])[:, 0].long()
    out.input_ids.copy_(last_token[slot].masked_fill(padded, 0))
    out.positions.copy_(position)
    out.seq_lens.copy_(seq_lens[slot].masked_fill(padded, 0))
    out.slot_mapping.copy_((block * block_size + position % block_size).masked_fill(placeless, -1))
    out.block_tables.copy_(tables)
