"""Draws the next token of each row, doing for each only what its parameters ask for. Shapes: R rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwire_service.core.params import LogprobsParams
from tokenwire_service.kernels import sample
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.runner.logprobs import TokenScores
from tokenwire_service.runner.sampling_rows import Need, SamplingRows
from tokenwire_service.runner.transfer import upload

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

    def __init__(self, rows: SamplingRows, backend: Backend) -> None:
        self._rows = rows
        self._backend = backend

    def draw(
        self, logits: Tensor, slots: _Ints, positions: _Ints, needs: _Ints, columns: sample.SampleColumns | None
    ) -> Drawn:
        """fp32 logits [R, V], overwritten; slots, positions and needs [R] of the tokens to draw. `columns` are the
        rows' parameters on the device, for a backend that draws from those."""
        asking = np.flatnonzero(needs & Need.LOGPROBS)
        raw = logits[_tensor(asking, logits)] if len(asking) else None
        if (needs & int(Need.edits())).any():
            sample.edit_logits(logits, self._edits(slots, positions, needs, logits.device), self._backend)
        if columns is None or (needs & Need.TYPICAL_P).any():
            choice = self._choose(logits, slots, positions, needs)
        else:
            choice = _room_for(logits)
            sample.sample_rows(logits, columns, *choice, self._backend)
        if raw is None:
            return Drawn(choice)
        wanted = [self._rows[slot].logprobs or LogprobsParams() for slot in slots[asking].tolist()]
        scores = TokenScores(raw, choice.token_ids[_tensor(asking, logits)], wanted, self._backend)
        return Drawn(choice, tuple(asking.tolist()), scores)

    def _choose(self, logits: Tensor, slots: _Ints, positions: _Ints, needs: _Ints) -> sample.Choice:
        draws = (needs & Need.DRAW) != 0
        if not draws.any():
            return sample.greedy(logits, self._backend)
        if draws.all():
            return sample.draw(logits, self._draw_params(slots, positions, needs, logits.device), self._backend)
        token_ids, valid = _room_for(logits)
        greedy_rows, draw_rows = (_tensor(np.flatnonzero(mask), logits) for mask in (~draws, draws))
        token_ids[greedy_rows], valid[greedy_rows] = sample.greedy(logits[greedy_rows], self._backend)
        params = self._draw_params(slots[draws], positions[draws], needs[draws], logits.device)
        token_ids[draw_rows], valid[draw_rows] = sample.draw(logits[draw_rows], params, self._backend)
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

    def _edits(self, slots: _Ints, positions: _Ints, needs: _Ints, device: torch.device) -> sample.LogitEdits:
        rows = self._rows

        def with_need(need: Need) -> list[tuple[int, int]]:
            return [(int(row), int(slots[row])) for row in np.flatnonzero(needs & need)]

        biased, allowed, masked = with_need(Need.BIAS), with_need(Need.ALLOWED), with_need(Need.MIN_TOKENS)
        return sample.LogitEdits(
            penalties=self._penalties(slots, positions, with_need(Need.PENALTIES), device),
            bias=sample.TokenBias(
                *_pairs(((row, rows[slot].bias_token_ids) for row, slot in biased), device),
                _joined([rows[slot].bias_values for _, slot in biased], device),
            )
            if biased
            else None,
            allowed=_mask(((row, rows[slot].allowed_token_ids) for row, slot in allowed), device),
            forbidden=_mask(((row, rows[slot].end_token_ids) for row, slot in masked), device),
        )

    def _penalties(
        self, slots: _Ints, positions: _Ints, penalized: list[tuple[int, int]], device: torch.device
    ) -> sample.Penalties | None:
        rows = self._rows
        counted = [(row, counts) for row, slot in penalized if (counts := rows[slot].counts) and len(counts.token_ids)]
        if not counted:
            return None

        def column(values: _Floats) -> Tensor:
            return upload(values[slots], device)

        row_ids, token_ids = _pairs(((row, counts.token_ids) for row, counts in counted), device)
        return sample.Penalties(
            rows=row_ids,
            token_ids=token_ids,
            generated_counts=_joined([counts.generated for _, counts in counted], device),
            total_counts=_joined([counts.total for _, counts in counted], device),
            lengths=upload(positions.astype(np.float32), device),
            repetition=column(rows.repetition),
            presence=column(rows.presence),
            frequency=column(rows.frequency),
            context_frequency=column(rows.context_frequency),
        )


def _room_for(logits: Tensor) -> sample.Choice:
    token_ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    return sample.Choice(token_ids, torch.empty_like(token_ids, dtype=torch.bool))


def _tensor(rows: _Ints, like: Tensor) -> Tensor:
    return upload(rows, like.device)


def _joined(arrays: list[_Ints] | list[_Floats], device: torch.device) -> Tensor:
    return upload(np.concatenate(arrays), device)


def _pairs(lists: Iterable[tuple[int, _Ints]], device: torch.device) -> sample.TokenMask:
    rows, token_ids = zip(*lists, strict=True)
    row_ids = np.repeat(np.array(rows, dtype=np.int64), [len(ids) for ids in token_ids])
    return sample.TokenMask(upload(row_ids, device), _joined(list(token_ids), device))


def _mask(lists: Iterable[tuple[int, _Ints]], device: torch.device) -> sample.TokenMask | None:
    present = list(lists)
    return _pairs(present, device) if present else None
