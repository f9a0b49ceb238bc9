"""Residual add and RMSNorm in one pass over the rows."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type, call-arg"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def add_rms_norm_kernel(residual, delta, weight, out, width, eps, BLOCK: tl.constexpr):
    """residual, delta (or None), out [T, width]; weight [width]. One program a row; BLOCK is at least the width.

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
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    normed = x * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=inside)


def config(width: int) -> tuple[int, int]:
    """(BLOCK, num_warps) for rows of this width: 16 bytes a thread and load as far as 16 warps go."""
    block = max(128, triton.next_power_of_2(width))
    return block, min(16, max(1, block // 256))


def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Shapes as in the package's public function."""
    tokens, width = residual.shape
    out = torch.empty_like(residual)
    block, num_warps = config(width)
    if out.numel():
        add_rms_norm_kernel[(tokens,)](residual, delta, weight, out, width, eps, block, num_warps=num_warps)
    return out
