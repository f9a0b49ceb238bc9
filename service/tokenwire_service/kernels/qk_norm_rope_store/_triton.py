"""Split of merged QKV, per-head norms, rotation and store into the KV blocks, in Triton."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type, call-arg"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _store(to, x, inside, scale, SATURATE: tl.constexpr):
    """x / scale, within what float8_e4m3fn holds, where SATURATE; NaN stays NaN."""
    if SATURATE:
        x = x / scale
        x = tl.where(x > 448.0, 448.0, tl.where(x < -448.0, -448.0, x))
    tl.store(to, x.to(to.dtype.element_ty), mask=inside)


@triton.jit
def _norm_weight(norm, columns, inside):
    return tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _norm_rope_store(
    source,
    to,
    lanes,
    cos_sin,
    norm,
    eps,
    scale,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    SATURATE: tl.constexpr,
):
    """One tile of heads. source, to: where each head begins, [HEADS, 1]; lanes: which of them exist.

    A head is read in three parts: the two halves of the pairs that turn, and what does not turn.
    """
    if HALF:
        pair = tl.arange(0, HALF)[None, :]
        first = pair * 2 if INTERLEAVED else pair
        second = first + 1 if INTERLEAVED else pair + ROTARY_DIM // 2
        turns = pair < ROTARY_DIM // 2
        a = tl.load(source + first, mask=lanes & turns, other=0.0).to(tl.float32)
        b = tl.load(source + second, mask=lanes & turns, other=0.0).to(tl.float32)
    if REST:
        column = ROTARY_DIM + tl.arange(0, REST)[None, :]
        stays = column < HEAD_DIM
        rest = tl.load(source + column, mask=lanes & stays, other=0.0).to(tl.float32)
    if norm is not None:
        square = tl.zeros(lanes.shape, tl.float32)
        if HALF:
            square += tl.sum(a * a + b * b, axis=1, keep_dims=True)
        if REST:
            square += tl.sum(rest * rest, axis=1, keep_dims=True)
        inverse = tl.rsqrt(square / HEAD_DIM + eps)
        if HALF:
            a = a * inverse * _norm_weight(norm, first, turns)
            b = b * inverse * _norm_weight(norm, second, turns)
        if REST:
            rest = rest * inverse * _norm_weight(norm, column, stays)
    if HALF:
        cos = tl.load(cos_sin + pair, mask=turns, other=0.0)
        sin = tl.load(cos_sin + ROTARY_DIM // 2 + pair, mask=turns, other=0.0)
        _store(to + first, a * cos - b * sin, lanes & turns, scale, SATURATE)
        _store(to + second, b * cos + a * sin, lanes & turns, scale, SATURATE)
    if REST:
        _store(to + column, rest, lanes & stays, scale, SATURATE)


@triton.jit(do_not_specialize=["num_slots"])
def qk_norm_rope_store_kernel(
    qkv,
    cos_sin,
    slot_mapping,
    key,
    value,
    q_norm,
    k_norm,
    q_out,
    num_slots,
    block_size,
    eps,
    key_scale,
    value_scale,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    SATURATE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: HEADS query heads, or key heads, or value heads of one token. Shapes as in the public function."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    q_groups: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    kv_groups: tl.constexpr = (NUM_KV_HEADS + HEADS - 1) // HEADS
    row = qkv + token * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    lane = tl.arange(0, HEADS)[:, None]
    if cos_sin is not None:
        cos_sin += token * ROTARY_DIM
    if group < q_groups:
        head = group * HEADS + lane
        source = row + head * HEAD_DIM
        to = q_out + token * (NUM_HEADS * HEAD_DIM) + head * HEAD_DIM
        _norm_rope_store(
            source,
            to,
            head < NUM_HEADS,
            cos_sin,
            q_norm,
            eps,
            1.0,
            HEAD_DIM,
            ROTARY_DIM,
            INTERLEAVED,
            HALF,
            REST,
            False,
        )
        return
    slot = tl.load(slot_mapping + token)
    if (slot < 0) | (slot >= num_slots):
        return
    block = slot // block_size
    if group < q_groups + kv_groups:
        head = (group - q_groups) * HEADS + lane
        source = row + (NUM_HEADS + head) * HEAD_DIM
        to = key + ((block * NUM_KV_HEADS + head) * block_size + slot % block_size) * HEAD_DIM
        lanes = head < NUM_KV_HEADS
        _norm_rope_store(
            source, to, lanes, cos_sin, k_norm, eps, key_scale, HEAD_DIM, ROTARY_DIM, INTERLEAVED, HALF, REST, SATURATE
        )
    else:
        head = (group - q_groups - kv_groups) * HEADS + lane
        column = tl.arange(0, BLOCK_D)[None, :]
        inside = (head < NUM_KV_HEADS) & (column < HEAD_DIM)
        source = row + (NUM_HEADS + NUM_KV_HEADS + head) * HEAD_DIM
        to = value + ((block * NUM_KV_HEADS + head) * block_size + slot % block_size) * HEAD_DIM
        x = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
        _store(to + column, x, inside, value_scale, SATURATE)


@dataclass(frozen=True, slots=True)
class Config:
    """Tile sizes. They depend on the model only, so that a token's result does not depend on its batch."""

    heads: int
    half: int
    rest: int
    block_d: int
    num_warps: int = 2


def config(num_heads: int, head_dim: int, rotary_dim: int) -> Config:
    """About 1,024 elements a program: 16 bytes a thread and load."""
    block_d = triton.next_power_of_2(head_dim)
    return Config(
        heads=max(1, min(1024 // block_d, triton.next_power_of_2(num_heads))),
        half=triton.next_power_of_2(rotary_dim // 2) if rotary_dim else 0,
        rest=triton.next_power_of_2(head_dim - rotary_dim) if rotary_dim < head_dim else 0,
        block_d=block_d,
    )


def qk_norm_rope_store(
    qkv: Tensor,
    cos_sin: Tensor | None,
    slot_mapping: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    interleaved: bool,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    key_scale: float,
    value_scale: float,
) -> Tensor:
    """Shapes as in the package's public function."""
    num_blocks, num_kv_heads, block_size, head_dim = key.shape
    rotary_dim = 0 if cos_sin is None else cos_sin.shape[1]
    q = qkv.new_empty((len(qkv), num_heads, head_dim))
    if not len(qkv):
        return q
    tile = config(num_heads, head_dim, rotary_dim)
    grid = (len(qkv), triton.cdiv(num_heads, tile.heads) + 2 * triton.cdiv(num_kv_heads, tile.heads))
    qk_norm_rope_store_kernel[grid](
        qkv,
        cos_sin,
        slot_mapping,
        key,
        value,
        q_norm,
        k_norm,
        q,
        num_blocks * block_size,
        block_size,
        eps,
        key_scale,
        value_scale,
        num_heads,
        num_kv_heads,
        head_dim,
        rotary_dim,
        interleaved,
        key.dtype == torch.float8_e4m3fn,
        tile.heads,
        tile.half,
        tile.rest,
        tile.block_d,
        num_warps=tile.num_warps,
    )
    return q
