"""What the sampling op takes: parameters per row, and sparse edits as (row, token) pairs. All tensors on one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """One token per row."""

    token_ids: Tensor
    """int64 [S]."""
    valid: Tensor
    """bool [S]: false where the row had NaN or +inf, or no token left; its token id means nothing."""


class Scores(NamedTuple):
    """What one token of each row was worth."""

    logprobs: Tensor
    """fp32 [S]."""
    ranks: Tensor
    """int64 [S]: 1 for the likeliest."""


class RowScores(NamedTuple):
    """What J named tokens of each row, and its n likeliest, are worth."""

    normalizer: Tensor
    """fp32 [S]: a token's log-probability is its logit minus this."""
    values: Tensor
    """fp32 [S, J]: logits of the named tokens."""
    top_values: Tensor
    """fp32 [S, n], descending."""
    top_ids: Tensor
    """int64 [S, n]."""
    ranks: Tensor
    """int64 [S, J]: 1 + number of tokens with a larger logit."""


class TokenMask(NamedTuple):
    """Pairs of row and token."""

    rows: Tensor
    """int64 [P]."""
    token_ids: Tensor
    """int64 [P]."""


class TokenBits(NamedTuple):
    """A set of tokens for each row, a bit per token, as grammars give them."""

    rows: Tensor
    """bool [S]: the rows that have a set; the words of others mean nothing."""
    words: Tensor
    """int32 [S, (V + 31) // 32]: token i is in the set where bit i % 32, the lowest first, of word i // 32 is on."""


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
    allowed_bits: TokenBits | None = None
    """In rows that have a set, every other token is masked out."""
    masked_rows: Tensor | None = None
    """int64 [P]: rows in which every token is masked out, as where these logits are a part of the vocabulary that none
    of the allowed tokens lies in."""


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

    def only(self, rows: tuple[int, ...]) -> DrawParams:
        """The parameters of the given rows, ascending, as a batch of their own."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.temperature.device)

        def renumbered(filtered: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(at for at, row in enumerate(rows) if row in filtered)

        return DrawParams(
            temperature=self.temperature[index],
            seed=self.seed[index],
            candidate=self.candidate[index],
            position=self.position[index],
            top_k=self.top_k[index],
            top_p=self.top_p[index],
            min_p=self.min_p[index],
            typical_p=self.typical_p[index],
            top_k_rows=renumbered(self.top_k_rows),
            top_p_rows=renumbered(self.top_p_rows),
            min_p_rows=renumbered(self.min_p_rows),
            typical_rows=renumbered(self.typical_rows),
        )


@dataclass(frozen=True, slots=True)
class SampleColumns:
    """Parameters of any rows, read on the device alone: a row's own values say what is done with it.

    Integers are int32 or int64.
    """

    temperature: Tensor
    """fp32 [S]; 0 takes the likeliest token and looks at nothing else below."""
    seed: Tensor
    """int64 [S], any 64 bits."""
    candidate: Tensor
    """[S]."""
    position: Tensor
    """[S]: the drawn token's position in its sequence."""
    top_k: Tensor
    """[S]; 0 is off."""
    top_p: Tensor
    """fp32 [S]; 1 is off."""
    min_p: Tensor
    """fp32 [S], at most 1; 0 is off."""
