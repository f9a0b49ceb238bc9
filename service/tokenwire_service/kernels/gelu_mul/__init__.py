"""Gated activation: gelu(gate) * up (GeGLU; Shazeer, 2020)."""

from __future__ import annotations

from torch import Tensor

from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.gelu_mul import reference


def gelu_mul(gate_up: Tensor, tanh: bool, backend: Backend) -> Tensor:
    """gate_up [T, 2I], contiguous, gate first → [T, I]. Raises ValueError for another layout.

    tanh: GELU by its tanh approximation ("gelu_pytorch_tanh", "gelu_new") instead of the error function ("gelu").
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or not gate_up.is_contiguous():
        raise ValueError(f"gate_up must be contiguous [T, 2I], got {tuple(gate_up.shape)}")
    if backend.triton:
        from tokenwire_service.kernels.gelu_mul import _triton

        return _triton.gelu_mul(gate_up, tanh)
    return reference.gelu_mul(gate_up, tanh)
