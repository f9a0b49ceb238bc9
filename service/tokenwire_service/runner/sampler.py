"""Draws the next token of each row, doing for each only what its parameters ask for. Shapes: R rows, V'
tokens of the vocabulary that this rank holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwire_service.core.params import LogprobsParams
from tokenwire_service.kernels import sample
from tokenwire_service.runner.logit_edits import EditBuilder
from tokenwire_service.runner.logprobs import TokenScores
from tokenwire_service.runner.sampling_rows import Need, SamplingRows
from tokenwire_service.runner.transfer import upload
from tokenwire_service.runner.vocabulary import Vocabulary

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token per row, on the device."""

    choice: sample.Choice
    """Ids of rows that are not valid mean nothing: their logits were not finite, or their constraints left no token."""
    scored: tuple[int, ...] = ()
    """Rows that asked for log-probabilities."""
    scores: TokenScores | None = None
    """Of those rows, in their order."""


class Sampler:
    """Reads the slots' parameters; changes nothing but the logits it is given."""

    def __init__(self, rows: SamplingRows, vocabulary: Vocabulary) -> None:
        self._rows = rows
        self._vocabulary = vocabulary
        self._edits = EditBuilder(rows, vocabulary)

    def draw(
        self, logits: Tensor, slots: _Ints, positions: _Ints, needs: _Ints, columns: sample.SampleColumns | None
    ) -> Drawn:
        """fp32 logits [R, V'], overwritten; slots, positions and needs [R] of the tokens to draw. `columns` are the
        rows' parameters on the device, for a backend that draws from those."""
        asking = np.flatnonzero(needs & Need.LOGPROBS)
        raw = logits[_tensor(asking, logits)] if len(asking) else None
        edited = bool((needs & int(Need.edits())).any())
        if edited:
            self._vocabulary.edit_logits(logits, self._edits.build(slots, positions, needs, logits.device))
        if columns is None or (needs & Need.TYPICAL_P).any():
            choice = self._choose(logits, slots, positions, needs)
        else:
            choice = _room_for(logits)
            self._vocabulary.sample_rows(logits, columns, *choice, edited=edited)
        if raw is None:
            return Drawn(choice)
        wanted = [self._rows[slot].logprobs or LogprobsParams() for slot in slots[asking].tolist()]
        scores = TokenScores(raw, choice.token_ids[_tensor(asking, logits)], wanted, self._vocabulary)
        return Drawn(choice, tuple(asking.tolist()), scores)

    def _choose(self, logits: Tensor, slots: _Ints, positions: _Ints, needs: _Ints) -> sample.Choice:
        draws = (needs & Need.DRAW) != 0
        if not draws.any():
            return self._vocabulary.greedy(logits)
        if draws.all():
            return self._vocabulary.draw(logits, self._draw_params(slots, positions, needs, logits.device))
        token_ids, valid = _room_for(logits)
        greedy_rows, draw_rows = (_tensor(np.flatnonzero(mask), logits) for mask in (~draws, draws))
        token_ids[greedy_rows], valid[greedy_rows] = self._vocabulary.greedy(logits[greedy_rows])
        params = self._draw_params(slots[draws], positions[draws], needs[draws], logits.device)
        token_ids[draw_rows], valid[draw_rows] = self._vocabulary.draw(logits[draw_rows], params)
        return sample.Choice(token_ids, valid)

    def _draw_params(self, slots: _Ints, positions: _Ints, needs: _Ints, device: torch.device) -> sample.DrawParams:
        rows = self._rows

        def column(values: _Ints | _Floats) -> Tensor:
            return upload(values[slots], device)

        def rows_with(need: Need) -> tuple[int, ...]:
            return tuple(np.flatnonzero(needs & need).tolist())

        return sample.DrawParams(
            temperature=column(rows.temperature),
            seed=column(rows.seed),
            candidate=column(rows.candidate),
            position=upload(positions, device),
            top_k=column(rows.top_k),
            top_p=column(rows.top_p),
            min_p=column(rows.min_p),
            typical_p=column(rows.typical_p),
            top_k_rows=rows_with(Need.TOP_K),
            top_p_rows=rows_with(Need.TOP_P),
            min_p_rows=rows_with(Need.MIN_P),
            typical_rows=rows_with(Need.TYPICAL_P),
        )


def _room_for(logits: Tensor) -> sample.Choice:
    token_ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    return sample.Choice(token_ids, torch.empty_like(token_ids, dtype=torch.bool))


def _tensor(rows: _Ints, like: Tensor) -> Tensor:
    return upload(rows, like.device)
