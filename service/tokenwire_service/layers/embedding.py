"""Token embedding and output head, the vocabulary cut over the ranks of a tensor-parallel group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.embed_gather import embed_gather
from tokenwire_service.kernels.linear import LinearWeight, linear
from tokenwire_service.parallel.group import TensorParallelGroup


@dataclass(frozen=True, slots=True)
class VocabParallelEmbedding:
    """Rank r holds rows [r * rows, (r + 1) * rows) of the table; the last ranks may be padded with zeros."""

    table: Tensor
    vocab_size: int
    group: TensorParallelGroup
    backend: Backend

    def __call__(self, input_ids: Tensor) -> Tensor:
        """input_ids int [T] → [T, E]."""
        first_id = self.group.rank * self.table.shape[0]
        return self.group.all_reduce(embed_gather(input_ids, self.table, first_id, self.vocab_size, self.backend))


@dataclass(frozen=True, slots=True)
class VocabParallelHead:
    """Scores of every token; rank r computes its rows of the vocabulary."""

    weight: LinearWeight
    vocab_size: int
    group: TensorParallelGroup

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [R, E] → float32 [R, V], the same on every rank."""
        return self.group.all_gather(linear(hidden, self.weight, None).to(torch.float32))[:, : self.vocab_size]
