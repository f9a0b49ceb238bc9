"""The sampler in Triton. Shapes: S rows, V tokens, N tiles a row, P sparse entries, J values a row.

Sums of weights are integers (fixed point), so they are exact in any order: however a row is cut into tiles, and
whatever its neighbours are, the same token is drawn. Every filter keeps the tokens at or above a cut; for positive
floats the order of values is that of their bits, so cuts are found by bisection of integers.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type, call-arg"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenwire_service.kernels.sample import reference
from tokenwire_service.kernels.sample._config import OCTAVES, RowCut, mass_scale, row_cut
from tokenwire_service.kernels.sample.params import Choice, DrawParams, SampleColumns

ONE = tl.constexpr(0x3F800000)
"""The bits of 1.0, the largest weight."""


@triton.jit
def _bits(weights):
    return weights.to(tl.int32, bitcast=True)


@triton.jit
def _fixed(weights, SCALE: tl.constexpr):
    """Weights in [0, 1] as integers."""
    return (weights * SCALE).to(tl.int64)


@triton.jit
def _load_tile(logits, row, row_stride, tile, num_tokens, other, TILE: tl.constexpr):
    columns = tile * TILE + tl.arange(0, TILE)
    return tl.load(logits + row.to(tl.int64) * row_stride + columns, mask=columns < num_tokens, other=other)


@triton.jit
def _load_per_tile(values, row, num_tiles, other, TILES: tl.constexpr):
    """One value of each tile of the row: [TILES]."""
    tiles = tl.arange(0, TILES)
    return tl.load(values + row.to(tl.int64) * num_tiles + tiles, mask=tiles < num_tiles, other=other)


@triton.jit
def _is_searched(row, temperature, top_k, top_p, num_tokens):
    """Whether the row's cut depends on its other tokens."""
    k = tl.load(top_k + row)
    return (tl.load(temperature + row) > 0) & (((k > 0) & (k < num_tokens)) | (tl.load(top_p + row) < 1))


@triton.jit
def tile_maxima_kernel(logits, row_stride, num_tokens, maxima, octaves, TILE: tl.constexpr, OCTAVES: tl.constexpr):
    """maxima [S, N]: each tile's maximum, +inf where there is a NaN. octaves [S, OCTAVES], or None, is cleared."""
    row, tile = tl.program_id(0), tl.program_id(1)
    x = _load_tile(logits, row, row_stride, tile, num_tokens, -float("inf"), TILE)
    best = tl.max(tl.where(x == x, x, float("inf")), axis=0)
    tl.store(maxima + row.to(tl.int64) * tl.num_programs(1) + tile, best)
    if octaves is not None:
        lanes = tl.arange(0, OCTAVES)
        is_first = (lanes >= 0) & (tile == 0)
        tl.store(octaves + row.to(tl.int64) * OCTAVES + lanes, tl.zeros([OCTAVES], tl.int32), mask=is_first)


@triton.jit
def weigh_kernel(
    logits,
    row_stride,
    num_tokens,
    maxima,
    masses,
    octaves,
    temperature,
    top_k,
    top_p,
    min_p,
    SCALE: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    OCTAVES: tl.constexpr,
):
    """Logits of rows that draw become weights, the likeliest 1. masses [S, N]: the sum of each tile's weights, of those
    that min-p keeps where nothing else filters; elsewhere the row's tokens are counted by octave too."""
    row, tile = tl.program_id(0), tl.program_id(1)
    heat = tl.load(temperature + row)
    best = tl.max(_load_per_tile(maxima, row, tl.num_programs(1), -float("inf"), TILES), axis=0)
    if (heat > 0) & (tl.abs(best) < float("inf")):
        x = _load_tile(logits, row, row_stride, tile, num_tokens, -float("inf"), TILE)
        columns = tile * TILE + tl.arange(0, TILE)
        weights = tl.exp(tl.maximum((x - best) / tl.maximum(heat, 1e-6), -80.0))
        weights = tl.where(columns < num_tokens, weights, 0.0)
        tl.store(logits + row.to(tl.int64) * row_stride + columns, weights, mask=columns < num_tokens)
        searched = _is_searched(row, temperature, top_k, top_p, num_tokens)
        cut = tl.where(searched, 0.0, tl.minimum(tl.load(min_p + row), 1.0))
        mass = tl.sum(_fixed(tl.where(weights >= cut, weights, 0.0), SCALE), axis=0)
        tl.store(masses + row.to(tl.int64) * tl.num_programs(1) + tile, mass)
        if searched:
            counts = tl.histogram(tl.minimum(127 - (_bits(weights) >> 23), OCTAVES - 1), OCTAVES)
            lanes = tl.arange(0, OCTAVES)
            tl.atomic_add(octaves + row.to(tl.int64) * OCTAVES + lanes, counts, mask=counts > 0, sem="relaxed")


@triton.jit
def _lower_bound(counts, k, p, mass, num_tokens, SCALE: tl.constexpr, OCTAVES: tl.constexpr):
    """Bits of a power of two, or 0, that the row's first cut is not below. counts [OCTAVES]; mass: the row's."""
    if (k > 0) & (k < num_tokens):
        octave = tl.sum((tl.cumsum(counts, axis=0) < k).to(tl.int32), axis=0)
    else:
        # What is below an octave's upper end weighs less than that end, token by token.
        ends = tl.exp2(1.0 - tl.arange(0, OCTAVES).to(tl.float32))
        below = tl.cumsum(counts.to(tl.float32) * ends, axis=0, reverse=True)
        dropped = (1 - p) * (mass.to(tl.float32) * (0.999 / SCALE))
        octave = tl.maximum(tl.sum((below > dropped).to(tl.int32), axis=0), 1) - 1
    return tl.where(octave < OCTAVES - 1, (127 - octave) << 23, 0)


@triton.jit
def compact_kernel(
    weights,
    row_stride,
    num_tokens,
    masses,
    octaves,
    candidates,
    counts,
    temperature,
    top_k,
    top_p,
    SCALE: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    OCTAVES: tl.constexpr,
):
    """candidates [S, N, TILE], counts [S, N]: of each tile, the weights among which the row's cut is to be found."""
    row, tile = tl.program_id(0), tl.program_id(1)
    if _is_searched(row, temperature, top_k, top_p, num_tokens):
        num_tiles = tl.num_programs(1)
        in_octaves = tl.load(octaves + row.to(tl.int64) * OCTAVES + tl.arange(0, OCTAVES))
        mass = tl.sum(_load_per_tile(masses, row, num_tiles, 0, TILES), axis=0)
        k, p = tl.load(top_k + row), tl.load(top_p + row)
        low = _lower_bound(in_octaves, k, p, mass, num_tokens, SCALE, OCTAVES)
        w = _load_tile(weights, row, row_stride, tile, num_tokens, 0.0, TILE)
        kept = (_bits(w) >= tl.maximum(low, 1)).to(tl.int32)
        at = row.to(tl.int64) * num_tiles + tile
        tl.store(candidates + at * TILE + tl.cumsum(kept, axis=0) - 1, w, mask=kept > 0)
        tl.store(counts + at, tl.sum(kept, axis=0))


@triton.jit
def _kept_by_tile(
    candidates, counts, cut, BY_MASS: tl.constexpr, SCALE: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr
):
    """How many of a row's candidates [N, TILE], the first counts [TILES] of each tile, are at or above the cut, or how
    much those weigh: int64 [TILES]."""
    tiles = tl.arange(0, counts.shape[0])
    kept = tl.zeros([counts.shape[0], COLUMNS], tl.int64)
    start, end = tl.full([], 0, tl.int32), tl.max(counts, axis=0)
    while start < end:
        columns = start + tl.arange(0, COLUMNS)
        inside = columns[None, :] < counts[:, None]
        w = tl.load(candidates + tiles[:, None] * TILE + columns[None, :], mask=inside, other=0.0)
        kept += tl.where(_bits(w) >= cut, _fixed(w, SCALE) if BY_MASS else 1, 0)
        start += COLUMNS
    return tl.sum(kept, axis=1)


@triton.jit
def _highest_cut(
    candidates,
    counts,
    wanted,
    low,
    BY_MASS: tl.constexpr,
    SCALE: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The highest cut that keeps what is wanted; `low` when none above it does."""
    high = tl.full([], ONE + 1, tl.int32)
    while high - low > 1:
        middle = (low + high) >> 1
        kept = tl.sum(_kept_by_tile(candidates, counts, middle, BY_MASS, SCALE, TILE, COLUMNS), axis=0)
        low = tl.where(kept.to(tl.float64) >= wanted, middle, low)
        high = tl.where(kept.to(tl.float64) >= wanted, high, middle)
    return low


@triton.jit
def _likeliest(logits, row, row_stride, num_tokens, maxima, best, TILE: tl.constexpr):
    """The lowest token of the highest logit; maxima [TILES], the highest of which is best."""
    tile = tl.argmax(maxima, axis=0, tie_break_left=True)
    x = _load_tile(logits, row, row_stride, tile, num_tokens, -float("inf"), TILE)
    return tile * TILE + tl.min(tl.where(x == best, tl.arange(0, TILE), TILE - 1), axis=0)


@triton.jit
def _uniform(seed, candidate, position):
    """philox.uniform: float64 in (0, 1)."""
    zero = tl.full([], 0, tl.uint32)
    high, low, _, _ = tl.philox(seed, position.to(tl.uint32), candidate.to(tl.uint32), zero, zero)
    draw = (high.to(tl.int64) << 16) | (low.to(tl.int64) >> 16)
    return (draw.to(tl.float64) + 0.5) * (1.0 / (1 << 48))


@triton.jit
def choose_kernel(
    weights,
    row_stride,
    num_tokens,
    num_tiles,
    maxima,
    masses,
    octaves,
    candidates,
    counts,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    candidate,
    position,
    token_ids,
    valid,
    SCALE: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    OCTAVES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program a row: its token, from the weights of a row that draws, from the logits of any other."""
    row = tl.program_id(0)
    tops = _load_per_tile(maxima, row, num_tiles, -float("inf"), TILES)
    best = tl.max(tops, axis=0)
    is_valid = tl.abs(best) < float("inf")
    token = tl.full([], 0, tl.int32)
    if is_valid:
        if tl.load(temperature + row) > 0:
            mass = _load_per_tile(masses, row, num_tiles, 0, TILES)
            cut = _bits(tl.minimum(tl.load(min_p + row), 1.0))
            if _is_searched(row, temperature, top_k, top_p, num_tokens):
                k, p = tl.load(top_k + row), tl.load(top_p + row)
                of_row = candidates + row.to(tl.int64) * num_tiles * TILE
                held = _load_per_tile(counts, row, num_tiles, 0, TILES)
                in_octaves = tl.load(octaves + row.to(tl.int64) * OCTAVES + tl.arange(0, OCTAVES))
                total = tl.sum(mass, axis=0)
                low = tl.maximum(_lower_bound(in_octaves, k, p, total, num_tokens, SCALE, OCTAVES), 1)
                if (k > 0) & (k < num_tokens):
                    low = _highest_cut(of_row, held, k.to(tl.float64), low, False, SCALE, TILE, COLUMNS)
                    total = tl.sum(_kept_by_tile(of_row, held, low, True, SCALE, TILE, COLUMNS), axis=0)
                if p < 1:
                    wanted = p.to(tl.float64) * total.to(tl.float64)
                    low = _highest_cut(of_row, held, wanted, low, True, SCALE, TILE, COLUMNS)
                cut = tl.maximum(cut, low)
                mass = _kept_by_tile(of_row, held, cut, True, SCALE, TILE, COLUMNS)
            draw = _uniform(tl.load(seed + row), tl.load(candidate + row), tl.load(position + row))
            target = (draw * tl.sum(mass, axis=0).to(tl.float64)).to(tl.int64)
            tile = tl.sum((tl.cumsum(mass, axis=0) <= target).to(tl.int32), axis=0)
            target -= tl.sum(tl.where(tl.arange(0, TILES) < tile, mass, 0), axis=0)
            w = _load_tile(weights, row, row_stride, tile, num_tokens, 0.0, TILE)
            ends = tl.cumsum(tl.where(_bits(w) >= cut, _fixed(w, SCALE), 0), axis=0)
            token = tile * TILE + tl.sum((ends <= target).to(tl.int32), axis=0)
        else:
            token = _likeliest(weights, row, row_stride, num_tokens, tops, best, TILE)
    tl.store(token_ids + row, token.to(tl.int64))
    tl.store(valid + row, is_valid)


@triton.jit
def choose_likeliest_kernel(
    logits, row_stride, num_tokens, num_tiles, maxima, token_ids, valid, TILE: tl.constexpr, TILES: tl.constexpr
):
    """One program a row: its likeliest token."""
    row = tl.program_id(0)
    tops = _load_per_tile(maxima, row, num_tiles, -float("inf"), TILES)
    best = tl.max(tops, axis=0)
    is_valid = tl.abs(best) < float("inf")
    token = tl.full([], 0, tl.int32)
    if is_valid:
        token = _likeliest(logits, row, row_stride, num_tokens, tops, best, TILE)
    tl.store(token_ids + row, token.to(tl.int64))
    tl.store(valid + row, is_valid)


def greedy(logits: Tensor, cut: RowCut | None = None) -> Choice:
    """As the package's function."""
    rows, vocab = logits.shape
    choice = _empty_choice(logits)
    if rows:
        cut = cut or row_cut(rows, vocab)
        maxima = logits.new_empty(rows, cut.num_tiles)
        given, warps = (logits, logits.stride(0), vocab), cut.num_warps
        tile_maxima_kernel[(rows, cut.num_tiles)](*given, maxima, None, cut.tile, OCTAVES, num_warps=warps)
        choose_likeliest_kernel[(rows,)](
            *given, cut.num_tiles, maxima, *choice, cut.tile, cut.num_lanes, num_warps=warps
        )
    return choice


def draw(logits: Tensor, params: DrawParams) -> Choice:
    """As the package's function."""
    choice = _empty_choice(logits)
    typical = torch.tensor(params.typical_rows, dtype=torch.int64, device=logits.device)
    left = logits[typical]
    sample_rows(logits, _columns(params), *choice)
    if params.typical_rows:
        choice.token_ids[typical], choice.valid[typical] = reference.draw(left, params.only(params.typical_rows))
    return choice


def sample_rows(
    logits: Tensor, columns: SampleColumns, token_ids: Tensor, valid: Tensor, cut: RowCut | None = None
) -> None:
    """As the package's function."""
    rows, vocab = logits.shape
    if not rows:
        return
    cut = cut or row_cut(rows, vocab)
    maxima = logits.new_empty(rows, cut.num_tiles)
    masses = torch.empty(rows, cut.num_tiles, dtype=torch.int64, device=logits.device)
    octaves = torch.empty(rows, OCTAVES, dtype=torch.int32, device=logits.device)
    candidates = logits.new_empty(rows, cut.num_tiles, cut.tile)
    counts = torch.empty(rows, cut.num_tiles, dtype=torch.int32, device=logits.device)
    given, filters = (logits, logits.stride(0), vocab), (columns.temperature, columns.top_k, columns.top_p)
    found, draws = (maxima, masses, octaves), (columns.seed, columns.candidate, columns.position)
    sizes = (mass_scale(vocab), cut.tile, cut.num_lanes, OCTAVES)
    grid, warps = (rows, cut.num_tiles), cut.num_warps
    tile_maxima_kernel[grid](*given, maxima, octaves, cut.tile, OCTAVES, num_warps=warps)
    weigh_kernel[grid](*given, *found, *filters, columns.min_p, *sizes, num_warps=warps)
    compact_kernel[grid](*given, masses, octaves, candidates, counts, *filters, *sizes, num_warps=warps)
    choose_kernel[(rows,)](
        *given,
        cut.num_tiles,
        *found,
        candidates,
        counts,
        *filters,
        columns.min_p,
        *draws,
        token_ids,
        valid,
        *sizes,
        cut.columns,
        num_warps=8,
    )


def _empty_choice(logits: Tensor) -> Choice:
    return Choice(
        torch.empty(len(logits), dtype=torch.int64, device=logits.device),
        torch.empty(len(logits), dtype=torch.bool, device=logits.device),
    )


def _columns(params: DrawParams) -> SampleColumns:
    return SampleColumns(
        temperature=params.temperature.clamp_min(torch.finfo(torch.float32).tiny),
        seed=params.seed,
        candidate=params.candidate,
        position=params.position,
        top_k=_only(params.top_k, params.top_k_rows, 0),
        top_p=_only(params.top_p, params.top_p_rows, 1),
        min_p=_only(params.min_p, params.min_p_rows, 0),
    )


def _only(values: Tensor, rows: tuple[int, ...], neutral: int) -> Tensor:
    """values [S] of the given rows, the neutral value elsewhere."""
    if len(rows) == len(values):
        return values
    result = torch.full_like(values, neutral)
    index = torch.tensor(rows, dtype=torch.int64, device=values.device)
    return result.index_copy_(0, index, values[index])
