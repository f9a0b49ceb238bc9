"""Edits of logits in Triton. Shapes: S rows, V tokens, P pairs of row and token."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenwire_service.kernels.sample.params import LogitEdits, Penalties, TokenBias, TokenMask

PAIRS = 256
"""Pairs that one program handles."""
TILE = 2048
"""Tokens of one row that one program masks."""


@triton.jit
def _locate(logits, row_stride, rows, token_ids, num_pairs, PAIRS: tl.constexpr):
    """This program's pairs: which there are, their rows, and where their logits lie."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    inside = pair < num_pairs
    row = tl.load(rows + pair, mask=inside, other=0)
    return pair, inside, row, logits + row * row_stride + tl.load(token_ids + pair, mask=inside, other=0)


@triton.jit
def penalize_kernel(
    logits,
    row_stride,
    rows,
    token_ids,
    num_pairs,
    generated_counts,
    total_counts,
    lengths,
    repetition,
    presence,
    frequency,
    context_frequency,
    PAIRS: tl.constexpr,
):
    """One program: PAIRS of the pairs, each of which occurs once."""
    pair, inside, row, at = _locate(logits, row_stride, rows, token_ids, num_pairs, PAIRS)
    value = tl.load(at, mask=inside, other=0.0)
    factor = tl.load(repetition + row, mask=inside, other=1.0)
    value = tl.where(value > 0, value / factor, value * factor)
    generated = tl.load(generated_counts + pair, mask=inside, other=0.0)
    value -= generated * tl.load(frequency + row, mask=inside, other=0.0)
    value -= tl.where(generated > 0, tl.load(presence + row, mask=inside, other=0.0), 0.0)
    share = tl.load(total_counts + pair, mask=inside, other=0.0) / tl.load(lengths + row, mask=inside, other=1.0)
    value -= share * tl.load(context_frequency + row, mask=inside, other=0.0)
    tl.store(at, value, mask=inside)


@triton.jit
def bias_kernel(logits, row_stride, rows, token_ids, num_pairs, values, PAIRS: tl.constexpr):
    """Adds each pair's value; a pair may occur more than once."""
    pair, inside, _, at = _locate(logits, row_stride, rows, token_ids, num_pairs, PAIRS)
    tl.atomic_add(at, tl.load(values + pair, mask=inside, other=0.0), mask=inside, sem="relaxed")


@triton.jit
def take_kernel(logits, row_stride, rows, token_ids, num_pairs, values, flags, PAIRS: tl.constexpr):
    """values [P]: the pairs' logits; flags uint8 [S]: set where a row occurs."""
    pair, inside, row, at = _locate(logits, row_stride, rows, token_ids, num_pairs, PAIRS)
    tl.store(values + pair, tl.load(at, mask=inside, other=0.0), mask=inside)
    tl.store(flags + row, tl.full([PAIRS], 1, tl.uint8), mask=inside)


@triton.jit
def put_kernel(logits, row_stride, rows, token_ids, num_pairs, values, PAIRS: tl.constexpr):
    """The pairs' logits become values [P], or -inf where that is None."""
    pair, inside, _, at = _locate(logits, row_stride, rows, token_ids, num_pairs, PAIRS)
    if values is None:
        tl.store(at, tl.full([PAIRS], -float("inf"), tl.float32), mask=inside)
    else:
        tl.store(at, tl.load(values + pair, mask=inside, other=0.0), mask=inside)


@triton.jit
def mask_kernel(logits, row_stride, num_tokens, flags, words, num_words, TILE: tl.constexpr):
    """Masks flagged rows, one tile a program: all of it, or what words [S, num_words] do not allow."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    if tl.load(flags + row) != 0:
        masked = column < num_tokens
        if words is not None:
            word = tl.load(words + row * num_words + column // 32, mask=masked, other=-1)
            masked &= ((word >> (column % 32)) & 1) == 0
        tl.store(logits + row * row_stride + column, tl.full([TILE], -float("inf"), tl.float32), mask=masked)


def edit_logits(logits: Tensor, edits: LogitEdits) -> None:
    """As the package's function."""
    if edits.penalties is not None:
        _penalize(logits, edits.penalties)
    if edits.bias is not None:
        _over_pairs(bias_kernel, logits, edits.bias, edits.bias.values)
    if edits.allowed is not None:
        _keep_only(logits, edits.allowed)
    if edits.allowed_bits is not None:
        _mask(logits, edits.allowed_bits.rows.view(torch.uint8), edits.allowed_bits.words)
    if edits.forbidden is not None:
        _over_pairs(put_kernel, logits, edits.forbidden, None)


def _penalize(logits: Tensor, p: Penalties) -> None:
    strengths = (p.repetition, p.presence, p.frequency, p.context_frequency)
    _over_pairs(
        penalize_kernel,
        logits,
        TokenMask(p.rows, p.token_ids),
        p.generated_counts,
        p.total_counts,
        p.lengths,
        *strengths,
    )


def _keep_only(logits: Tensor, allowed: TokenMask) -> None:
    kept = logits.new_empty(len(allowed.rows))
    flags = torch.zeros(len(logits), dtype=torch.uint8, device=logits.device)
    _over_pairs(take_kernel, logits, allowed, kept, flags)
    _mask(logits, flags, None)
    _over_pairs(put_kernel, logits, allowed, kept)


def _over_pairs(kernel: Any, logits: Tensor, pairs: TokenMask | TokenBias, *more: Tensor | None) -> None:
    if count := len(pairs.rows):
        grid = (triton.cdiv(count, PAIRS),)
        kernel[grid](logits, logits.stride(0), pairs.rows, pairs.token_ids, count, *more, PAIRS)


def _mask(logits: Tensor, flags: Tensor, words: Tensor | None) -> None:
    rows, vocab = logits.shape
    num_words = 0 if words is None else words.shape[1]
    mask_kernel[(rows, triton.cdiv(vocab, TILE))](logits, logits.stride(0), vocab, flags, words, num_words, TILE)
