"""Choosing tokens from logits: edits, greedy, draws, log-probabilities. One backend so far, for every device."""

from __future__ import annotations

from torch import Tensor

from tokenwire_service.kernels.sample import reference
from tokenwire_service.kernels.sample.params import Choice, DrawParams, LogitEdits, Penalties, TokenBias, TokenMask

__all__ = [
    "Choice",
    "DrawParams",
    "LogitEdits",
    "Penalties",
    "TokenBias",
    "TokenMask",
    "draw",
    "edit_logits",
    "greedy",
    "log_normalizer",
    "ranks",
]


def edit_logits(logits: Tensor, edits: LogitEdits) -> None:
    """Apply penalties, bias, allowed sets and masks to fp32 logits [S, V], in place."""
    _check(logits)
    reference.edit_logits(logits, edits)


def greedy(logits: Tensor) -> Choice:
    """Likeliest token of each row of fp32 logits [S, V], lowest id on ties."""
    _check(logits)
    return reference.greedy(logits)


def draw(logits: Tensor, params: DrawParams) -> Choice:
    """Draw one token per row from fp32 logits [S, V], which are overwritten."""
    _check(logits)
    if params.temperature.shape != (logits.shape[0],):
        raise ValueError(f"parameters for {params.temperature.shape[0]} rows, logits of {logits.shape[0]}")
    return reference.draw(logits, params)


def log_normalizer(logits: Tensor) -> Tensor:
    """fp32 [S, V] → [S]: a token's log-probability is its logit minus this."""
    _check(logits)
    return reference.log_normalizer(logits)


def ranks(logits: Tensor, values: Tensor) -> Tensor:
    """1 + number of tokens with a larger logit: fp32 [S, V], values [S, J] → int64 [S, J]."""
    _check(logits)
    return reference.ranks(logits, values)


def _check(logits: Tensor) -> None:
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be [S, V] floats, not {tuple(logits.shape)} {logits.dtype}")
