"""State of running sequences on the device: a step that only decodes needs nothing from the host.

Slot state, one entry a running sequence: last_token, positions (of that token) and seq_lens (tokens up to and including
it), all int32 [N]; token_ids int32 [N, L], all tokens of the sequence; block_tables int32 [N, M]. A slot of -1 is a
padded row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenwire_service.kernels.advance import reference
from tokenwire_service.kernels.advance.inputs import DecodeInputs
from tokenwire_service.kernels.backend import Backend

__all__ = ["DecodeInputs", "advance", "gather_decode_inputs"]


def advance(
    sampled_ids: Tensor,
    slots: Tensor,
    last_token: Tensor,
    positions: Tensor,
    seq_lens: Tensor,
    token_ids: Tensor,
    backend: Backend,
) -> None:
    """Appends sampled_ids int64 [S] to the sequences in slots int32 [S], in place; slots but for -1 are distinct.

    The sampled token becomes the slot's last token and token_ids[slot, seq_lens[slot]], then position and length grow
    by one. A token beyond the L of token_ids is not recorded there. Raises ValueError for other shapes or types.
    """
    rows, num_slots = _check_state(slots, last_token, positions, seq_lens)
    _check("sampled_ids", sampled_ids, torch.int64, (rows,))
    _check("token_ids", token_ids, torch.int32, (num_slots, token_ids.shape[-1]))
    if backend.triton:
        from tokenwire_service.kernels.advance import _triton

        _triton.advance(sampled_ids, slots, last_token, positions, seq_lens, token_ids)
        return
    reference.advance(sampled_ids, slots, last_token, positions, seq_lens, token_ids)


def gather_decode_inputs(
    slots: Tensor,
    last_token: Tensor,
    positions: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    block_size: int,
    out: DecodeInputs,
    backend: Backend,
) -> None:
    """Writes the inputs of a decode step of the sequences in slots int32 [S] into `out`, every element of it.

    The block of a slot's position is looked up in its row of block_tables [N, M]. Raises ValueError for other shapes or
    types.
    """
    rows, num_slots = _check_state(slots, last_token, positions, seq_lens)
    width = block_tables.shape[-1]
    _check("block_tables", block_tables, torch.int32, (num_slots, width))
    _check("out.input_ids", out.input_ids, torch.int64, (rows,))
    _check("out.positions", out.positions, torch.int64, (rows,))
    _check("out.seq_lens", out.seq_lens, torch.int32, (rows,))
    _check("out.slot_mapping", out.slot_mapping, torch.int64, (rows,))
    _check("out.block_tables", out.block_tables, torch.int32, (rows, width))
    if backend.triton:
        from tokenwire_service.kernels.advance import _triton

        _triton.gather_decode_inputs(slots, last_token, positions, seq_lens, block_tables, block_size, out)
        return
    reference.gather_decode_inputs(slots, last_token, positions, seq_lens, block_tables, block_size, out)


def _check_state(slots: Tensor, last_token: Tensor, positions: Tensor, seq_lens: Tensor) -> tuple[int, int]:
    rows, num_slots = slots.numel(), last_token.numel()
    _check("slots", slots, torch.int32, (rows,))
    _check("last_token", last_token, torch.int32, (num_slots,))
    _check("positions", positions, torch.int32, (num_slots,))
    _check("seq_lens", seq_lens, torch.int32, (num_slots,))
    return rows, num_slots


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous {dtype} {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
