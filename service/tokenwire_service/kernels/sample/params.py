"""What the sampling op takes: parameters per row, and sparse edits as (row, token) pairs. All tensors on one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Choice(NamedTuple):
    """One token per row."""

    token_ids: Tensor
    """int64 [S]."""
    valid: Tensor
    """bool [S]: false where the row had NaN or +inf, or no token left; its token id means nothing."""


class TokenMask(NamedTuple):
    """Pairs of row and token."""

    rows: Tensor
    """int64 [P]."""
    token_ids: Tensor
    """int64 [P]."""


class TokenBias(NamedTuple):
    """Values added to the logits of (row, token) pairs."""

    rows: Tensor
    """int64 [P]."""
    token_ids: Tensor
    """int64 [P]."""
    values: Tensor
    """fp32 [P]."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """Tokens seen so far, each (row, token) once, with their counts, and the strengths per row."""

    rows: Tensor
    """int64 [P]."""
    token_ids: Tensor
    """int64 [P]."""
    generated_counts: Tensor
    """fp32 [P]: occurrences among the generated tokens."""
    total_counts: Tensor
    """fp32 [P]: occurrences among prompt and generated tokens."""
    lengths: Tensor
    """fp32 [S]: prompt + generated tokens."""
    repetition: Tensor
    """fp32 [S]; 1 is off."""
    presence: Tensor
    """fp32 [S]; 0 is off, as below."""
    frequency: Tensor
    context_frequency: Tensor


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """Everything that changes logits before temperature; None leaves a step out."""

    penalties: Penalties | None = None
    bias: TokenBias | None = None
    allowed: TokenMask | None = None
    """In rows that occur here, every other token is masked out."""
    forbidden: TokenMask | None = None


@dataclass(frozen=True, slots=True)
class DrawParams:
    """Parameters of rows that draw (temperature > 0). The `_rows` name the rows a filter is on for, ascending."""

    temperature: Tensor
    """fp32 [S], > 0."""
    seed: Tensor
    """int64 [S], any 64 bits."""
    candidate: Tensor
    """int64 [S]."""
    position: Tensor
    """int64 [S]: the drawn token's position in its sequence."""
    top_k: Tensor
    """int64 [S]."""
    top_p: Tensor
    """fp32 [S]."""
    min_p: Tensor
    """fp32 [S]."""
    typical_p: Tensor
    """fp32 [S]."""
    top_k_rows: tuple[int, ...] = ()
    top_p_rows: tuple[int, ...] = ()
    min_p_rows: tuple[int, ...] = ()
    typical_rows: tuple[int, ...] = ()
