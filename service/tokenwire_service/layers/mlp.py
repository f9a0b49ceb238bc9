"""Gated MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.silu_mul import silu_mul
from tokenwire_service.layers.linear import ColumnParallelLinear, RowParallelLinear


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(silu(gate(x)) * up(x)), gate and up merged."""

    gate_up: ColumnParallelLinear
    down: RowParallelLinear
    backend: Backend

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, E] → [T, E]."""
        return self.down(silu_mul(self.gate_up(x), self.backend))
