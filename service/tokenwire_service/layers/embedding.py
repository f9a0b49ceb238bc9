"""Token embedding and output head, the vocabulary cut over the ranks of a tensor-parallel group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Scores of every token; rank r computes its rows of the vocabulary."""

    weight: LinearWeight
    vocab_size: int
    group: TensorParallelGroup

    def __call__(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """hidden [R, E] → float32 [R, V], the same on every rank; written into `out` when that is given."""
        scores = linear(hidden, self.weight, None)
        if out is None:
            return self.group.all_gather(scores.to(torch.float32))[:, : self.vocab_size]
        return out.copy_(self.group.all_gather(scores)[:, : self.vocab_size])
