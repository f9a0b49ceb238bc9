"""Log-probabilities and ranks in Triton. Shapes: S rows, V tokens, N tiles a row, J values a row.

Rows are cut the same way whatever their number, so that a row's sums do not depend on its neighbours.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenwire_service.kernels.sample.params import Scores

TILE = 4096
"""Tokens of one row that one program reads."""


@triton.jit
def _base(best):
    """What exponents are taken relative to: an infinite maximum has to stay one."""
    return tl.where(tl.abs(best) == float("inf"), 0.0, best)


@triton.jit
def score_kernel(logits, row_stride, num_tokens, maxima, sums, values, num_values, ranks, TILE: tl.constexpr):
    """maxima, sums [S, N] (or None): each tile's maximum and sum of exponentials relative to it. values [S, J], ranks
    int64 [S, J] (or None): larger logits are added to the ranks."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tile * TILE + tl.arange(0, TILE)
    x = tl.load(logits + row * row_stride + column, mask=column < num_tokens, other=-float("inf"))
    if sums is not None:
        best = tl.max(x, axis=0)
        at = row * tl.num_programs(1) + tile
        tl.store(maxima + at, best)
        tl.store(sums + at, tl.sum(tl.exp(x - _base(best)), axis=0))
    if ranks is not None:
        at, end = row * num_values, (row + 1) * num_values
        while at < end:
            above = tl.sum((x > tl.load(values + at)).to(tl.int64), axis=0)
            tl.atomic_add(ranks + at, above, sem="relaxed")
            at += 1


@triton.jit
def combine_kernel(maxima, sums, num_tiles, normalizers, TILES: tl.constexpr):
    """normalizers [S]: log-sum-exp of each row, one program a row."""
    row, tile = tl.program_id(0).to(tl.int64), tl.arange(0, TILES)
    best = tl.load(maxima + row * num_tiles + tile, mask=tile < num_tiles, other=-float("inf"))
    part = tl.load(sums + row * num_tiles + tile, mask=tile < num_tiles, other=0.0)
    base = _base(tl.max(best, axis=0))
    # Above 0 only where the tile or the row has no finite maximum.
    total = tl.sum(part * tl.exp(tl.minimum(_base(best) - base, 0.0)), axis=0)
    is_empty = total == 0.0
    tl.store(normalizers + row, tl.log(tl.where(is_empty, 1.0, total)) + tl.where(is_empty, -float("inf"), base))


def log_normalizer(logits: Tensor) -> Tensor:
    """As the package's function."""
    return _score(logits, None, None)


def ranks(logits: Tensor, values: Tensor) -> Tensor:
    """As the package's function."""
    found = torch.ones(values.shape, dtype=torch.int64, device=logits.device)
    rows, vocab = logits.shape
    if found.numel():
        grid = (rows, triton.cdiv(vocab, TILE))
        values = values.contiguous()
        score_kernel[grid](logits, logits.stride(0), vocab, None, None, values, values.shape[1], found, TILE)
    return found


def score(logits: Tensor, token_ids: Tensor) -> Scores:
    """As the package's function."""
    values = logits.gather(-1, token_ids.unsqueeze(-1))
    found = torch.ones_like(token_ids)
    return Scores(values.squeeze(-1) - _score(logits, values, found), found)


def _score(logits: Tensor, values: Tensor | None, found: Tensor | None) -> Tensor:
    """Normalizers [S]; the larger logits than values [S, 1] are added to found [S] on the way."""
    rows, vocab = logits.shape
    tiles = triton.cdiv(vocab, TILE)
    maxima, sums = logits.new_empty(rows, tiles), logits.new_empty(rows, tiles)
    normalizers = logits.new_empty(rows)
    if rows:
        score_kernel[(rows, tiles)](logits, logits.stride(0), vocab, maxima, sums, values, 1, found, TILE)
        combine_kernel[(rows,)](maxima, sums, tiles, normalizers, triton.next_power_of_2(tiles))
    return normalizers
