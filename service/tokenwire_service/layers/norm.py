"""RMSNorm on the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenwire_service.kernels.add_rms_norm import add_rms_norm
from tokenwire_service.kernels.backend import Backend


@dataclass(frozen=True, slots=True)
class AddRMSNorm:
    """Adds a block's output to the residual stream, then normalises."""

    weight: Tensor
    eps: float
    backend: Backend

    def __call__(self, residual: Tensor, delta: Tensor | None) -> Tensor:
        """residual [T, E] += delta in place (nothing when None) → its RMSNorm [T, E]."""
        return add_rms_norm(residual, delta, self.weight, self.eps, self.backend)
