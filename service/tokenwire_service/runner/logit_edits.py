"""From the slots' parameters to the edits of one step's logits. Shapes: R rows, P pairs of row and token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwire_service.kernels import sample
from tokenwire_service.runner.sampling_rows import Need, SamplingRows
from tokenwire_service.runner.transfer import upload
from tokenwire_service.runner.vocabulary import Vocabulary

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float32]


class EditBuilder:
    """Reads the slots' parameters; only the tokens that `vocabulary` holds get pairs."""

    def __init__(self, rows: SamplingRows, vocabulary: Vocabulary) -> None:
        self._rows = rows
        self._vocabulary = vocabulary

    def build(self, slots: _Ints, positions: _Ints, needs: _Ints, device: torch.device) -> sample.LogitEdits:
        """slots, positions and needs [R] of the tokens to draw."""
        rows = self._rows

        def with_need(need: Need) -> list[tuple[int, int]]:
            return [(int(row), int(slots[row])) for row in np.flatnonzero(needs & need)]

        biased, allowed, masked = with_need(Need.BIAS), with_need(Need.ALLOWED), with_need(Need.MIN_TOKENS)
        bias = self._pairs(
            [(row, rows[slot].bias_token_ids) for row, slot in biased],
            device,
            [rows[slot].bias_values for _, slot in biased],
        )
        kept = self._pairs([(row, rows[slot].allowed_token_ids) for row, slot in allowed], device)
        forbidden = self._pairs([(row, rows[slot].end_token_ids) for row, slot in masked], device)
        return sample.LogitEdits(
            penalties=self._penalties(slots, positions, with_need(Need.PENALTIES), device),
            bias=sample.TokenBias(*bias) if bias else None,
            allowed=sample.TokenMask(*kept) if kept else None,
            forbidden=sample.TokenMask(*forbidden) if forbidden else None,
            masked_rows=self._without_tokens([(row, rows[slot].allowed_token_ids) for row, slot in allowed], device),
        )

    def _penalties(
        self, slots: _Ints, positions: _Ints, penalized: list[tuple[int, int]], device: torch.device
    ) -> sample.Penalties | None:
        rows = self._rows
        counted = [(row, counts) for row, slot in penalized if (counts := rows[slot].counts) and len(counts.token_ids)]
        pairs = self._pairs(
            [(row, counts.token_ids) for row, counts in counted],
            device,
            [counts.generated for _, counts in counted],
            [counts.total for _, counts in counted],
        )
        if pairs is None:
            return None

        def column(values: _Floats) -> Tensor:
            return upload(values[slots], device)

        row_ids, token_ids, generated, total = pairs
        return sample.Penalties(
            rows=row_ids,
            token_ids=token_ids,
            generated_counts=generated,
            total_counts=total,
            lengths=upload(positions.astype(np.float32), device),
            repetition=column(rows.repetition),
            presence=column(rows.presence),
            frequency=column(rows.frequency),
            context_frequency=column(rows.context_frequency),
        )

    def _pairs(
        self, lists: Sequence[tuple[int, _Ints]], device: torch.device, *values: Sequence[_Floats]
    ) -> tuple[Tensor, ...] | None:
        """Rows, columns and values, [P] each, of the tokens that are here; None when there are none."""
        if not lists:
            return None
        rows, token_ids = zip(*lists, strict=True)
        row_ids = np.repeat(np.array(rows, dtype=np.int64), [len(ids) for ids in token_ids])
        columns, here = self._vocabulary.local_ids(np.concatenate(token_ids))
        parts: list[_Ints | _Floats] = [row_ids, columns, *(np.concatenate(value) for value in values)]
        if here is not None:
            parts = [part[here] for part in parts]
        return tuple(upload(part, device) for part in parts) if len(parts[0]) else None

    def _without_tokens(self, lists: Sequence[tuple[int, _Ints]], device: torch.device) -> Tensor | None:
        """int64 [P]: rows none of whose tokens are here; None when there are none."""
        absent = []
        for row, token_ids in lists:
            _, here = self._vocabulary.local_ids(token_ids)
            if here is not None and not here.any():
                absent.append(row)
        return upload(np.array(absent, dtype=np.int64), device) if absent else None
