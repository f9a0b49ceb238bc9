"""Residual add fused with LayerNorm (Ba, Kiros and Hinton, 2016)."""

from __future__ import annotations

from torch import Tensor

from tokenwire_service.kernels.add_layer_norm import reference
from tokenwire_service.kernels.backend import Backend


def add_layer_norm(
    residual: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, backend: Backend
) -> Tensor:
    """residual [T, E] += delta [T, E] in place (nothing when None); returns LayerNorm(residual) * weight + bias [T, E].

    weight and bias [E]; no bias adds nothing. Raises ValueError unless all are contiguous and of these shapes.
    """
    if residual.dim() != 2 or not residual.is_contiguous() or weight.shape != residual.shape[1:]:
        raise ValueError(f"residual must be contiguous [T, E] with weight [E], got {tuple(residual.shape)}")
    if delta is not None and (delta.shape != residual.shape or not delta.is_contiguous()):
        raise ValueError(f"delta must be contiguous {tuple(residual.shape)}, got {tuple(delta.shape)}")
    if bias is not None and bias.shape != weight.shape:
        raise ValueError(f"bias must be {tuple(weight.shape)} as weight, got {tuple(bias.shape)}")
    if backend.triton:
        from tokenwire_service.kernels.add_layer_norm import _triton

        return _triton.add_layer_norm(residual, delta, weight, bias, eps)
    return reference.add_layer_norm(residual, delta, weight, bias, eps)
