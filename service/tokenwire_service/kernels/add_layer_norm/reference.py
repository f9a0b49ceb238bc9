"""Residual add and LayerNorm in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def add_layer_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """residual [T, E] += delta [T, E], in place; returns its LayerNorm. Mean and variance are taken in float32."""
    if delta is not None:
        residual.add_(delta)
    shape = (residual.shape[1],)
    normed = F.layer_norm(residual.float(), shape, weight.float(), None if bias is None else bias.float(), eps)
    return normed.to(residual.dtype)
