"""Draws the next token of each row, doing for each only what its parameters ask for. Shapes: R rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwire_service.core.events import TokenLogprob
from tokenwire_service.core.params import LogprobsParams
from tokenwire_service.kernels import sample
from tokenwire_service.runner.logprobs import score_tokens
from tokenwire_service.runner.sampling_rows import Need
from tokenwire_service.runner.slots import SlotState

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One drawn token per row."""

    token_ids: list[int]
    valid: list[bool]
    """False where the row's logits were not finite, or its constraints left no token."""
    logprobs: list[TokenLogprob | None]
    """None where a row did not ask."""


class Sampler:
    """Reads the slots' parameters; changes nothing but the logits it is given."""

    def __init__(self, state: SlotState) -> None:
        self._state = state

    def draw(self, logits: Tensor, slots: _Ints) -> Sampled:
        """fp32 logits [R, V], overwritten; slots [R]. The token drawn for a slot is its next position's."""
        needs = self._state.sampling.needs[slots]
        asking = np.flatnonzero(needs & Need.LOGPROBS)
        raw = logits[_tensor(asking, logits)] if len(asking) else None
        if (needs & int(Need.edits())).any():
            sample.edit_logits(logits, self._edits(slots, needs, logits.device))
        token_ids, valid = self._choose(logits, slots, needs)
        scores: list[TokenLogprob | None] = [None] * len(slots)
        if raw is not None:
            wanted = [self._logprobs_params(slot) for slot in slots[asking]]
            for row, score in zip(asking, score_tokens(raw, token_ids[_tensor(asking, logits)], wanted), strict=True):
                scores[row] = score
        return Sampled(token_ids.tolist(), valid.tolist(), scores)

    def _choose(self, logits: Tensor, slots: _Ints, needs: _Ints) -> sample.Choice:
        draws = (needs & Need.DRAW) != 0
        if not draws.any():
            return sample.greedy(logits)
        if draws.all():
            return sample.draw(logits, self._draw_params(slots, needs, logits.device))
        token_ids = torch.empty(len(slots), dtype=torch.int64, device=logits.device)
        valid = torch.empty(len(slots), dtype=torch.bool, device=logits.device)
        greedy_rows, draw_rows = (_tensor(np.flatnonzero(mask), logits) for mask in (~draws, draws))
        token_ids[greedy_rows], valid[greedy_rows] = sample.greedy(logits[greedy_rows])
        params = self._draw_params(slots[draws], needs[draws], logits.device)
        token_ids[draw_rows], valid[draw_rows] = sample.draw(logits[draw_rows], params)
        return sample.Choice(token_ids, valid)

    def _draw_params(self, slots: _Ints, needs: _Ints, device: torch.device) -> sample.DrawParams:
        rows = self._state.sampling

        def column(values: _Ints | _Floats) -> Tensor:
            return torch.from_numpy(values[slots]).to(device)

        def rows_with(need: Need) -> tuple[int, ...]:
            return tuple(np.flatnonzero(needs & need).tolist())

        return sample.DrawParams(
            temperature=column(rows.temperature),
            seed=column(rows.seed),
            candidate=column(rows.candidate),
            position=column(self._state.num_tokens),
            top_k=column(rows.top_k),
            top_p=column(rows.top_p),
            min_p=column(rows.min_p),
            typical_p=column(rows.typical_p),
            top_k_rows=rows_with(Need.TOP_K),
            top_p_rows=rows_with(Need.TOP_P),
            min_p_rows=rows_with(Need.MIN_P),
            typical_rows=rows_with(Need.TYPICAL_P),
        )

    def _edits(self, slots: _Ints, needs: _Ints, device: torch.device) -> sample.LogitEdits:
        rows = self._state.sampling

        def with_need(need: Need) -> list[tuple[int, int]]:
            return [(int(row), int(slots[row])) for row in np.flatnonzero(needs & need)]

        biased, allowed, masked = with_need(Need.BIAS), with_need(Need.ALLOWED), with_need(Need.MIN_TOKENS)
        return sample.LogitEdits(
            penalties=self._penalties(slots, with_need(Need.PENALTIES), device),
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
        self, slots: _Ints, penalized: list[tuple[int, int]], device: torch.device
    ) -> sample.Penalties | None:
        rows = self._state.sampling
        counted = [(row, counts) for row, slot in penalized if (counts := rows[slot].counts) and len(counts.token_ids)]
        if not counted:
            return None

        def column(values: _Floats) -> Tensor:
            return torch.from_numpy(values[slots]).to(device)

        row_ids, token_ids = _pairs(((row, counts.token_ids) for row, counts in counted), device)
        return sample.Penalties(
            rows=row_ids,
            token_ids=token_ids,
            generated_counts=_joined([counts.generated for _, counts in counted], device),
            total_counts=_joined([counts.total for _, counts in counted], device),
            lengths=column(self._state.num_tokens.astype(np.float32)),
            repetition=column(rows.repetition),
            presence=column(rows.presence),
            frequency=column(rows.frequency),
            context_frequency=column(rows.context_frequency),
        )

    def _logprobs_params(self, slot: int) -> LogprobsParams:
        return self._state.sampling[slot].logprobs or LogprobsParams()


def _tensor(rows: _Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(like.device)


def _joined(arrays: list[_Ints] | list[_Floats], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def _pairs(lists: Iterable[tuple[int, _Ints]], device: torch.device) -> sample.TokenMask:
    rows, token_ids = zip(*lists, strict=True)
    row_ids = np.repeat(np.array(rows, dtype=np.int64), [len(ids) for ids in token_ids])
    return sample.TokenMask(torch.from_numpy(row_ids).to(device), _joined(list(token_ids), device))


def _mask(lists: Iterable[tuple[int, _Ints]], device: torch.device) -> sample.TokenMask | None:
    present = list(lists)
    return _pairs(present, device) if present else None
