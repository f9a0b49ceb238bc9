"""Gated activation: silu(gate) * up (SwiGLU; Shazeer, 2020)."""

from __future__ import annotations

from torch import Tensor

from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.silu_mul import reference


def silu_mul(gate_up: Tensor, backend: Backend) -> Tensor:
    """gate_up [T, 2I], contiguous, gate first → [T, I]. Raises ValueError for another layout."""
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or not gate_up.is_contiguous():
        raise ValueError(f"gate_up must be contiguous [T, 2I], got {tuple(gate_up.shape)}")
    if backend.triton:
        from tokenwire_service.kernels.silu_mul import _triton

        return _triton.silu_mul(gate_up)
    if backend.library is None:
        return reference.silu_mul(gate_up)
    tokens, width = gate_up.shape
    out = backend.library.empty(tokens, width // 2)
    backend.library.run("tw_silu_mul", gate_up.data_ptr(), out.data_ptr(), tokens, width // 2)
    return out
