"""Residual add and RMSNorm in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """residual [T, E] += delta [T, E], in place; returns its RMSNorm. The mean square is taken in float32."""
    if delta is not None:
        residual.add_(delta)
    x = residual.float()
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    return weight * normed.to(residual.dtype)
