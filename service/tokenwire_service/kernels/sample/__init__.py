"""Choosing tokens from logits: edits, greedy, draws, log-probabilities.

Every function runs its PyTorch reference unless given a backend with Triton. Results of a row depend on that row alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.sample import reference
from tokenwire_service.kernels.sample.params import (
    Choice,
    DrawParams,
    LogitEdits,
    Penalties,
    RowScores,
    SampleColumns,
    Scores,
    TokenBias,
    TokenBits,
    TokenMask,
)

__all__ = [
    "Choice",
    "DrawParams",
    "LogitEdits",
    "Penalties",
    "RowScores",
    "SampleColumns",
    "Scores",
    "TokenBias",
    "TokenBits",
    "TokenMask",
    "draw",
    "edit_logits",
    "greedy",
    "log_normalizer",
    "ranks",
    "sample_rows",
    "score",
]


def edit_logits(logits: Tensor, edits: LogitEdits, backend: Backend | None = None) -> None:
    """Apply penalties, bias, allowed sets and masks to fp32 logits [S, V], in place."""
    _check(logits)
    bits = edits.allowed_bits
    if bits is not None and bits.words.shape != (len(logits), -(-logits.shape[1] // 32)):
        raise ValueError(f"allowed_bits must have words [S, V / 32 rounded up], not {tuple(bits.words.shape)}")
    if _uses_triton(backend):
        from tokenwire_service.kernels.sample import _triton_edits

        _triton_edits.edit_logits(logits, edits)
    else:
        reference.edit_logits(logits, edits)
    if edits.masked_rows is not None:
        logits.index_fill_(0, edits.masked_rows, -torch.inf)


def greedy(logits: Tensor, backend: Backend | None = None) -> Choice:
    """Likeliest token of each row of fp32 logits [S, V], lowest id on ties."""
    _check(logits)
    if _uses_triton(backend):
        from tokenwire_service.kernels.sample import _triton

        return _triton.greedy(logits)
    return reference.greedy(logits)


def draw(logits: Tensor, params: DrawParams, backend: Backend | None = None) -> Choice:
    """Draw one token per row from fp32 logits [S, V], which are overwritten. Rows with typical_p run the reference."""
    _check(logits)
    if params.temperature.shape != (logits.shape[0],):
        raise ValueError(f"parameters for {params.temperature.shape[0]} rows, logits of {logits.shape[0]}")
    if _uses_triton(backend):
        from tokenwire_service.kernels.sample import _triton

        return _triton.draw(logits, params)
    return reference.draw(logits, params)


def sample_rows(
    logits: Tensor, columns: SampleColumns, token_ids: Tensor, valid: Tensor, backend: Backend | None = None
) -> None:
    """Choose one token per row of fp32 logits [S, V] (overwritten) as the row's parameters say, greedily or by drawing.

    Writes token_ids int64 [S], always within the vocabulary, and valid bool [S], as in Choice. With Triton nothing
    is looked at on the host, so that a CUDA graph can hold it. There is no typical_p here: `draw` has it.
    """
    _check(logits)
    if token_ids.shape != logits.shape[:1] or token_ids.dtype != torch.int64:
        raise ValueError(f"token_ids must be int64 [{len(logits)}], not {token_ids.dtype} {tuple(token_ids.shape)}")
    if valid.shape != logits.shape[:1] or valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool [{len(logits)}], not {valid.dtype} {tuple(valid.shape)}")
    if columns.temperature.shape != logits.shape[:1]:
        raise ValueError(f"columns of {len(columns.temperature)} rows, logits of {len(logits)}")
    if _uses_triton(backend):
        from tokenwire_service.kernels.sample import _triton

        _triton.sample_rows(logits, columns, token_ids, valid)
    else:
        reference.sample_rows(logits, columns, token_ids, valid)


def score(logits: Tensor, token_ids: Tensor, backend: Backend | None = None) -> Scores:
    """Log-probability and rank of one token per row: fp32 logits [S, V], token_ids int64 [S]."""
    _check(logits)
    if _uses_triton(backend):
        from tokenwire_service.kernels.sample import _triton_scores

        return _triton_scores.score(logits, token_ids)
    return reference.score(logits, token_ids)


def log_normalizer(logits: Tensor, backend: Backend | None = None) -> Tensor:
    """fp32 [S, V] → [S]: a token's log-probability is its logit minus this."""
    _check(logits)
    if _uses_triton(backend):
        from tokenwire_service.kernels.sample import _triton_scores

        return _triton_scores.log_normalizer(logits)
    return reference.log_normalizer(logits)


def ranks(logits: Tensor, values: Tensor, backend: Backend | None = None) -> Tensor:
    """1 + number of tokens with a larger logit: fp32 [S, V], values [S, J] → int64 [S, J]."""
    _check(logits)
    if _uses_triton(backend):
        from tokenwire_service.kernels.sample import _triton_scores

        return _triton_scores.ranks(logits, values)
    return reference.ranks(logits, values)


def _uses_triton(backend: Backend | None) -> bool:
    return backend is not None and backend.triton


def _check(logits: Tensor) -> None:
    if logits.dim() != 2 or not logits.is_floating_point() or logits.stride(1) != 1:
        raise ValueError(
            f"logits must be [S, V] floats with rows in one piece, not {tuple(logits.shape)} {logits.dtype}"
        )
