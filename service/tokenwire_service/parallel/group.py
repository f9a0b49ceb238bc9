"""The ranks that share one model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorParallelGroup:
    """One rank's view of the ranks that share a model. At size 1 every collective is the identity.

    At other sizes the caller has initialised torch.distributed; `process_group` None is its default group.
    """

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not in a group of {self.size}")

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place; returns x."""
        if self.size > 1:
            dist.all_reduce(x, group=self.process_group)
        return x

    def all_max(self, x: Tensor) -> Tensor:
        """Largest over ranks, element by element, in place; returns x, which must hold no NaN."""
        if self.size > 1:
            dist.all_reduce(x, op=dist.ReduceOp.MAX, group=self.process_group)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenation over ranks, in rank order, along the last dimension. x has the same shape on every rank."""
        if self.size == 1:
            return x
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.process_group)
        return torch.cat(parts, dim=-1)

    def split(self, total: int) -> slice:
        """This rank's part of `total` rows that divide evenly. Raises ValueError when they do not."""
        if total % self.size:
            raise ValueError(f"{total} does not divide by {self.size} ranks")
        part = total // self.size
        return slice(self.rank * part, (self.rank + 1) * part)
