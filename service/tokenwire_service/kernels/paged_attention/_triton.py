"""Attention over KV blocks on a GPU: one kernel for prefill, chunks, decode and verification, and one to merge splits.

The rows of a tile are BLOCK_Q query tokens times the G query heads of one KV head, so every key is read once for all of
them. Which sequence a tile belongs to is found on the device: the grid depends on the sizes of the tensors alone, and a
CUDA graph may replay it with other lengths. Rows without queries, sequences of length 0 and tokens past the last query
cost one look and write nothing. An output depends on the launch configuration, its own sequence and nothing else, so
batches of the same padded sizes agree bit by bit, whoever else is in them.

The method is FlashAttention-2's online softmax with flash decoding's splits (arXiv 2307.08691, 2311.01282), GQA packed
as in arXiv 2511.11581.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, arg-type, assignment"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenwire_service.kernels.paged_attention._config import LaunchConfig, Sizes, launch_config
from tokenwire_service.kernels.paged_attention.options import AttentionOptions

_LOG2E: tl.constexpr = tl.constexpr(math.log2(math.e))
_NOTHING: tl.constexpr = tl.constexpr(-1.0e30)
"""Maximum of no scores: finite, so that differences of two such are 0 and not NaN."""
_LOOK: tl.constexpr = tl.constexpr(128)
"""Sequences looked at together when a tile finds its own."""


@triton.jit
def _find_row(query_start_loc, num_seqs, tile, BLOCK_Q: tl.constexpr):
    """The last sequence whose first tile is not after `tile`; its first tile. One look for up to 128 sequences."""
    offsets = tl.arange(0, _LOOK)
    before = tl.zeros([_LOOK], tl.int32)
    for first in range(0, num_seqs, _LOOK):
        row = first + offsets
        start = tl.load(query_start_loc + row, mask=row < num_seqs, other=0)
        if BLOCK_Q > 1:
            start = start // BLOCK_Q + row
        before += ((row < num_seqs) & (start <= tile)).to(tl.int32)
    return tl.sum(before, axis=0) - 1


@triton.jit
def _cook(scores, position, keys, slope, score_scale, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr):
    """Softcap and ALiBi on raw scores [M, N], in units of log2(e)."""
    if SOFTCAP > 0.0:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1), which is right at both ends.
        power = tl.exp2(scores * (score_scale * (2.0 * _LOG2E / SOFTCAP)))
        scores = (SOFTCAP * _LOG2E) * (1.0 - 2.0 / (power + 1.0))
    else:
        scores = scores * (score_scale * _LOG2E)
    if ALIBI:
        scores += (slope * _LOG2E)[:, None] * (keys[None, :] - position[:, None]).to(tl.float32)
    return scores


@triton.jit
def _skipping(step, skip_from, skip):
    """The tile of a step, when `skip` tiles are left out from `skip_from` on."""
    return step + tl.where(step >= skip_from, skip, 0)


@triton.jit
def _load_blocks(table, tile, first_key, num_keys, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Block ids of a tile's keys: one where the tile lies in a block, else [N]; 0 for keys that are not stored."""
    if BLOCK_SIZE % BLOCK_N == 0:
        blocks = tl.load(table + tile // (BLOCK_SIZE // BLOCK_N), mask=tile * BLOCK_N < num_keys, other=0)
    else:
        keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        blocks = tl.load(table + keys // BLOCK_SIZE, mask=(keys >= first_key) & (keys < num_keys), other=0)
    return blocks


@triton.jit
def _attend_tiles(
    mixed, top, total, q_tile, key, value, table, kv_head, position, slope, first_key, num_keys, score_scale,
    begin, end, skip_from, skip,
    NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Online softmax of one tile of queries over tiles [begin, end) of keys, `skip` of them left out from `skip_from`
    on. mixed [M, D_PAD], top and total [M] are the sum of values, the maximum and the sum of weights so far."""
    column = tl.arange(0, D_PAD)
    tile = _skipping(begin, skip_from, skip)
    blocks = _load_blocks(table, tile, first_key, num_keys, BLOCK_SIZE, BLOCK_N)
    for step in range(begin, end):
        keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        stored = (keys >= first_key) & (keys < num_keys)
        slot = ((blocks.to(tl.int64) * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + keys % BLOCK_SIZE) * D
        # One tile ahead: a chain of loads within one turn would take the stages that keys and values should have.
        tile = _skipping(step + 1, skip_from, skip)
        blocks = _load_blocks(table, tile, first_key, num_keys, BLOCK_SIZE, BLOCK_N)
        at = slot[:, None] + column[None, :]
        if MASKED:
            readable = stored[:, None] if D == D_PAD else stored[:, None] & (column < D)[None, :]
            key_tile = tl.load(key + at, mask=readable, other=0.0)
            value_tile = tl.load(value + at, mask=readable, other=0.0)
        elif D == D_PAD:
            key_tile = tl.load(key + at)
            value_tile = tl.load(value + at)
        else:
            key_tile = tl.load(key + at, mask=(column < D)[None, :], other=0.0)
            value_tile = tl.load(value + at, mask=(column < D)[None, :], other=0.0)

        scores = tl.dot(q_tile, tl.trans(key_tile.to(q_tile.dtype)), input_precision="ieee")
        # Where scores are only scaled, the factor goes into the exponent: one fused multiply-add an element.
        factor = score_scale * _LOG2E
        if (SOFTCAP > 0.0) | ALIBI:
            scores = _cook(scores, position, keys, slope, score_scale, SOFTCAP, ALIBI)
            factor = 1.0
        if MASKED:
            visible = stored[None, :] & (keys[None, :] <= position[:, None])
            if WINDOW > 0:
                visible = visible & (keys[None, :] > position[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1) * factor)
        weights = tl.exp2(scores * factor - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, axis=1)
        mixed = mixed * shrink[:, None]
        mixed = tl.dot(weights.to(q_tile.dtype), value_tile.to(q_tile.dtype), mixed, input_precision="ieee")
        top = new_top
    return mixed, top, total


@triton.jit(do_not_specialize=["num_seqs", "table_width"])
def paged_attention_kernel(
    q, key, value, query_start_loc, seq_lens, block_tables, alibi_slopes, sinks, out,
    partial, partial_top, partial_total, num_seqs, table_width, score_scale, value_scale,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, MIN_TILES: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ONE_LOOP: tl.constexpr,
):  # fmt: skip
    """q [T, H, D] over key and value [N, K, B, D] → out [T, H, D], or with SPLITS > 1 → partial [T, H, SPLITS, D],
    partial_top and partial_total [T, H, SPLITS]. Grid: (tiles of queries, K, SPLITS)."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    ALIBI: tl.constexpr = alibi_slopes is not None
    # The last tiles of a long prompt have the most keys: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    row = _find_row(query_start_loc, num_seqs, tile, BLOCK_Q)
    query_start = tl.load(query_start_loc + row)
    query_len = tl.load(query_start_loc + row + 1) - query_start
    first_tile = query_start if BLOCK_Q == 1 else query_start // BLOCK_Q + row
    first_token = (tile - first_tile) * BLOCK_Q
    if first_token >= query_len:
        return

    seq_len = tl.load(seq_lens + row)
    first_position = seq_len - query_len + first_token
    num_keys = tl.minimum(seq_len, first_position + BLOCK_Q)
    first_key = 0
    full_begin = 0
    if WINDOW > 0:
        first_key = tl.maximum(first_position - WINDOW + 1, 0)
        full_begin = tl.cdiv(tl.maximum(num_keys - WINDOW, 0), BLOCK_N)
    begin = first_key // BLOCK_N
    end = tl.cdiv(num_keys, BLOCK_N)

    line = tl.arange(0, BLOCK_M)
    column = tl.arange(0, D_PAD)
    token = first_token + line // GROUP
    head = kv_head * GROUP + line % GROUP
    used = (line < BLOCK_Q * GROUP) & (token < query_len)
    head_row = (query_start + token).to(tl.int64) * NUM_HEADS + head
    if SPLITS > 1:
        share = tl.maximum(tl.cdiv(end - begin, SPLITS), MIN_TILES)
        begin += split * share
        end = tl.minimum(end, begin + share)
        if begin >= end:
            tl.store(partial_top + head_row * SPLITS + split, tl.full([BLOCK_M], _NOTHING, tl.float32), mask=used)
            tl.store(partial_total + head_row * SPLITS + split, tl.zeros([BLOCK_M], tl.float32), mask=used)
            return

    element = used[:, None] if D == D_PAD else used[:, None] & (column < D)[None, :]
    q_tile = tl.load(q + head_row[:, None] * D + column[None, :], mask=element, other=0.0)
    slope = tl.load(alibi_slopes + head, mask=used, other=0.0) if ALIBI else 0.0
    position = first_position + line // GROUP
    table = block_tables + row.to(tl.int64) * table_width
    mixed = tl.zeros([BLOCK_M, D_PAD], tl.float32)
    top = tl.full([BLOCK_M], _NOTHING, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    # Tiles whose every key every row sees need no mask; before them lies the window's edge, after them the diagonal.
    full_begin = tl.minimum(tl.maximum(full_begin, begin), end)
    full_end = tl.minimum(tl.maximum((first_position + 1) // BLOCK_N, full_begin), end)
    if ONE_LOOP:
        full_end = full_begin
    else:
        mixed, top, total = _attend_tiles(
            mixed, top, total, q_tile, key, value, table, kv_head, position, slope, first_key, num_keys, score_scale,
            full_begin, full_end, 0, 0,
            NUM_KV_HEADS, D, D_PAD, BLOCK_SIZE, BLOCK_N, WINDOW, SOFTCAP, ALIBI, False,
        )  # fmt: skip
    skip = full_end - full_begin
    mixed, top, total = _attend_tiles(
        mixed, top, total, q_tile, key, value, table, kv_head, position, slope, first_key, num_keys, score_scale,
        begin, end - skip, full_begin, skip,
        NUM_KV_HEADS, D, D_PAD, BLOCK_SIZE, BLOCK_N, WINDOW, SOFTCAP, ALIBI, True,
    )  # fmt: skip

    if SPLITS > 1:
        at = head_row * SPLITS + split
        tl.store(partial + at[:, None] * D + column[None, :], mixed, mask=element)
        tl.store(partial_top + at, top, mask=used)
        tl.store(partial_total + at, total, mask=used)
    else:
        if sinks is not None:
            sink = tl.load(sinks + head, mask=used, other=0.0) * _LOG2E
            new_top = tl.maximum(top, sink)
            total = total * tl.exp2(top - new_top) + tl.exp2(sink - new_top)
            mixed = mixed * tl.exp2(top - new_top)[:, None]
        # A row that sees nothing stays 0, and NaN stays NaN.
        mixed = mixed * (value_scale / tl.where(total == 0.0, 1.0, total))[:, None]
        tl.store(out + head_row[:, None] * D + column[None, :], mixed.to(out.dtype.element_ty), mask=element)


@triton.jit(do_not_specialize=["num_seqs"])
def merge_splits_kernel(
    partial, partial_top, partial_total, sinks, query_start_loc, out, num_seqs, value_scale,
    NUM_HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """What paged_attention_kernel left of each split → out [T, H, D]. Grid: (T, H). Empty splits are not read."""
    token = tl.program_id(0)
    head = tl.program_id(1)
    if token >= tl.load(query_start_loc + num_seqs):
        return
    column = tl.arange(0, D_PAD)
    head_row = token.to(tl.int64) * NUM_HEADS + head
    at = head_row * SPLITS + tl.arange(0, SPLITS)
    tops = tl.load(partial_top + at)
    totals = tl.load(partial_total + at)
    element = (totals != 0.0)[:, None] & (column < D)[None, :]
    parts = tl.load(partial + at[:, None] * D + column[None, :], mask=element, other=0.0)
    top = tl.max(tops, axis=0)
    if sinks is not None:
        sink = tl.load(sinks + head) * _LOG2E
        top = tl.maximum(top, sink)
    shares = tl.exp2(tops - top)
    total = tl.sum(totals * shares, axis=0)
    if sinks is not None:
        total += tl.exp2(sink - top)
    mixed = tl.sum(parts * shares[:, None], axis=0) * (value_scale / tl.where(total == 0.0, 1.0, total))
    tl.store(out + head_row * D + column, mixed.to(out.dtype.element_ty), mask=column < D)


def paged_attention(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    options: AttentionOptions,
    config: LaunchConfig | None = None,
) -> Tensor:
    """Shapes as in the package's public function; block ids are not checked, and rows of `out` that belong to no query
    hold whatever they held. `config` is the committed table's unless given."""
    out = torch.empty_like(q)
    sizes = sizes_of(q, key, block_tables)
    if not q.numel() or not sizes.num_seqs:
        return out
    config = config or launch_config(sizes)
    partials = _partials(q, config.splits)
    paged_attention_kernel[(config.num_tiles(sizes), sizes.num_kv_heads, config.splits)](
        q, key, value, query_start_loc, seq_lens, block_tables, options.alibi_slopes, options.sinks, out, *partials,
        sizes.num_seqs, sizes.max_blocks, options.scale * options.key_scale, options.value_scale,
        **attention_constants(sizes, options, config), num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if config.splits > 1:
        merge_splits_kernel[(sizes.num_tokens, sizes.num_heads)](
            *partials, options.sinks, query_start_loc, out, sizes.num_seqs, options.value_scale,
            **merge_constants(sizes, config), num_warps=merge_warps(sizes, config),
        )  # fmt: skip
    return out


def _partials(q: Tensor, splits: int) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
    if splits == 1:
        return None, None, None
    tokens, num_heads, head_dim = q.shape
    partial = torch.empty((tokens, num_heads, splits, head_dim), dtype=torch.float32, device=q.device)
    tops = torch.empty((2, tokens, num_heads, splits), dtype=torch.float32, device=q.device)
    return partial, tops[0], tops[1]


def sizes_of(q: Tensor, key: Tensor, block_tables: Tensor) -> Sizes:
    """The sizes a launch depends on."""
    return Sizes(
        num_tokens=q.shape[0],
        num_seqs=block_tables.shape[0],
        num_heads=q.shape[1],
        num_kv_heads=key.shape[1],
        head_dim=q.shape[2],
        block_size=key.shape[2],
        max_blocks=block_tables.shape[1],
        q_bytes=q.element_size(),
        kv_bytes=key.element_size(),
    )


def attention_constants(sizes: Sizes, options: AttentionOptions, config: LaunchConfig) -> dict[str, int | float | bool]:
    """The compile-time parameters of paged_attention_kernel."""
    return {
        "NUM_HEADS": sizes.num_heads,
        "NUM_KV_HEADS": sizes.num_kv_heads,
        "D": sizes.head_dim,
        "D_PAD": triton.next_power_of_2(max(16, sizes.head_dim)),
        "BLOCK_SIZE": sizes.block_size,
        "BLOCK_M": config.block_m,
        "BLOCK_Q": config.block_q,
        "BLOCK_N": config.block_n,
        "SPLITS": config.splits,
        "MIN_TILES": max(1, config.min_split // config.block_n),
        "WINDOW": options.window or 0,
        "SOFTCAP": options.softcap or 0.0,
        "ONE_LOOP": config.one_loop,
    }


def merge_constants(sizes: Sizes, config: LaunchConfig) -> dict[str, int]:
    """The compile-time parameters of merge_splits_kernel."""
    return {
        "NUM_HEADS": sizes.num_heads,
        "D": sizes.head_dim,
        "D_PAD": triton.next_power_of_2(max(16, sizes.head_dim)),
        "SPLITS": config.splits,
    }


def merge_warps(sizes: Sizes, config: LaunchConfig) -> int:
    """Warps of merge_splits_kernel: 16 values a thread."""
    return max(1, min(4, config.splits * sizes.head_dim // 512))
