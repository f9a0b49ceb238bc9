"""Token embedding and output head, the vocabulary cut over the ranks of a tensor-parallel group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenwire_service.kernels.backend import LinearFormat
from tokenwire_service.kernels.linear import LinearWeight, linear, rows
from tokenwire_service.parallel.group import TensorParallelGroup


@dataclass(frozen=True, slots=True)
class VocabParallelEmbedding:
    """Rank r holds rows [r * rows, (r + 1) * rows) of the table; the last ranks may be padded with zeros."""

    table: LinearWeight
    vocab_size: int
    group: TensorParallelGroup

    def __call__(self, input_ids: Tensor) -> Tensor:
        """input_ids int [T] → [T, E]."""
        first_id = self.group.rank * self.table.out_features
        return self.group.all_reduce(rows(input_ids, self.table, first_id, self.vocab_size))


@dataclass(frozen=True, slots=True)
class VocabParallelHead:
    """Scores of this rank's part of the vocabulary: tokens [rank * V', (rank + 1) * V'), V' being `width`."""

    weight: LinearWeight
    vocab_size: int
    group: TensorParallelGroup

    @property
    def width(self) -> int:
        """V': the same on every rank; the last ranks' parts may reach beyond the vocabulary."""
        return self.weight.out_features

    @property
    def dtype(self) -> torch.dtype:
        """What scores are computed in, before they become float32."""
        return self.weight.data.dtype if self.weight.format is LinearFormat.PLAIN else torch.float32

    def __call__(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """hidden [R, E] → float32 [R, V'], -inf beyond the vocabulary; written into `out` when that is given."""
        scores = linear(hidden, self.weight, None)
        scores = scores.to(torch.float32) if out is None else out.copy_(scores)
        if self.group.size > 1:
            scores[:, max(self.vocab_size - self.group.rank * self.width, 0) :] = -torch.inf
        return scores
