"""Residual add and LayerNorm in one pass over the rows."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type, call-arg"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenwire_service.kernels.add_rms_norm._triton import config


@triton.jit
def add_layer_norm_kernel(residual, delta, weight, bias, out, width, eps, BLOCK: tl.constexpr):
    """residual, delta (or None), out [T, width]; weight, bias (or None) [width]. One program a row, BLOCK >= width.

    The norm is of the sum as it is stored. Everything else is rounded once.
    """
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = tl.program_id(0).to(tl.int64) * width + columns
    x = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if delta is not None:
        x += tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)
        stored = x.to(residual.dtype.element_ty)
        tl.store(residual + at, stored, mask=inside)
        x = stored.to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x, axis=0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
    normed = centred * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        normed += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=inside)


def add_layer_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Shapes as in the package's public function."""
    tokens, width = residual.shape
    out = torch.empty_like(residual)
    block, num_warps = config(width)
    if out.numel():
        add_layer_norm_kernel[(tokens,)](residual, delta, weight, bias, out, width, eps, block, num_warps=num_warps)
    return out
