"""silu(gate) * up in one pass."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type, call-arg"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Columns of one program: 16 bytes a thread of 4 warps."""


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without an overflow on the way."""
    decayed = tl.exp(-tl.abs(x))
    return tl.where(x < 0, decayed, 1.0) / (1.0 + decayed)


@triton.jit
def silu_mul_kernel(gate_up, out, width, BLOCK: tl.constexpr):
    """gate_up [T, 2 width] → out [T, width]. One program: BLOCK columns of a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    result = gate * sigmoid(gate) * up
    tl.store(out + row * width + columns, result.to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2I] → [T, I]."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((tokens, width))
    if out.numel():
        silu_mul_kernel[(tokens, triton.cdiv(width, BLOCK))](gate_up, out, width, BLOCK)
    return out
