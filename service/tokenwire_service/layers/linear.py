"""Linear layers cut over the ranks of a tensor-parallel group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenwire_service.kernels.linear import LinearWeight, linear
from tokenwire_service.parallel.group import TensorParallelGroup


@dataclass(frozen=True, slots=True)
class ColumnParallelLinear:
    """Each rank holds some output features (merged QKV, merged gate and up): no communication."""

    weight: LinearWeight
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] → this rank's [T, N / size]."""
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class RowParallelLinear:
    """Each rank holds some input features: the partial results are summed."""

    weight: LinearWeight
    bias: Tensor | None
    """Held by rank 0 alone, so that it is added once."""
    group: TensorParallelGroup

    def __call__(self, x: Tensor) -> Tensor:
        """This rank's x [T, K / size] → [T, N], the same on every rank."""
        return self.group.all_reduce(linear(x, self.weight, self.bias))
