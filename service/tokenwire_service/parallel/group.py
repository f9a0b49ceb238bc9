"""The ranks that share one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Shortcut(Protocol):
    """A quicker way than torch.distributed's for some tensors. Which ones depends on nothing that ranks differ in."""

    def all_reduce(self, x: Tensor) -> bool:
        """Whether x became the sum over ranks; if not, nothing happened."""
        ...

    def gather(self, x: Tensor) -> Tensor | None:
        """x, contiguous → [ranks, *x.shape] with everybody's x; None when nothing happened."""
        ...


@dataclass(frozen=True, slots=True)
class TensorParallelGroup:
    """One rank's view of the ranks that share a model. At size 1 every collective is the identity.

    At other sizes the caller has initialised torch.distributed; `process_group` None is its default group. Results are
    the same on every rank, bit for bit.
    """

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None
    shortcut: Shortcut | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not in a group of {self.size}")

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place; returns x."""
        if self.size > 1 and not (self.shortcut is not None and self.shortcut.all_reduce(x)):
            dist.all_reduce(x, group=self.process_group)
        return x

    def all_max(self, x: Tensor) -> Tensor:
        """Largest over ranks, element by element, in place; returns x, which must hold no NaN."""
        if self.size > 1:
            x.copy_(self._gather(x.contiguous()).amax(0))
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenation over ranks, in rank order, along the last dimension. x has the same shape on every rank."""
        if self.size == 1:
            return x
        return torch.cat(list(self._gather(x.contiguous())), dim=-1)

    def split(self, total: int) -> slice:
        """This rank's part of `total` rows that divide evenly. Raises ValueError when they do not."""
        if total % self.size:
            raise ValueError(f"{total} does not divide by {self.size} ranks")
        part = total // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def _gather(self, x: Tensor) -> Tensor:
        """x, contiguous → [ranks, *x.shape]."""
        gathered = None if self.shortcut is None else self.shortcut.gather(x)
        if gathered is None:
            gathered = torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
            dist.all_gather(list(gathered), x, group=self.process_group)
        return gathered
