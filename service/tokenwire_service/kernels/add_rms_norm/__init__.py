"""Residual add fused with RMSNorm (Zhang and Sennrich, 2019)."""

from __future__ import annotations

from torch import Tensor

from tokenwire_service.kernels.add_rms_norm import reference
from tokenwire_service.kernels.backend import Backend


def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, backend: Backend) -> Tensor:
    """residual [T, E] += delta [T, E] in place (nothing when None); returns RMSNorm(residual) * weight [E], [T, E].

    Raises ValueError unless all are contiguous and of these shapes.
    """
    if residual.dim() != 2 or not residual.is_contiguous() or weight.shape != residual.shape[1:]:
        raise ValueError(f"residual must be contiguous [T, E] with weight [E], got {tuple(residual.shape)}")
    if delta is not None and (delta.shape != residual.shape or not delta.is_contiguous()):
        raise ValueError(f"delta must be contiguous {tuple(residual.shape)}, got {tuple(delta.shape)}")
    if backend.triton:
        from tokenwire_service.kernels.add_rms_norm import _triton

        return _triton.add_rms_norm(residual, delta, weight, eps)
    if backend.library is None:
        return reference.add_rms_norm(residual, delta, weight, eps)
    out = backend.library.empty(*residual.shape)
    backend.library.run(
        "tw_add_rms_norm",
        residual.data_ptr(),
        0 if delta is None else delta.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        *residual.shape,
        eps,
    )
    return out
