"""gelu(gate) * up in one pass."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type, call-arg"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tokenwire_service.kernels.silu_mul._triton import BLOCK, sigmoid


@triton.jit
def gelu_mul_kernel(gate_up, out, width, TANH: tl.constexpr, BLOCK: tl.constexpr):
    """gate_up [T, 2 width] → out [T, width]. One program: BLOCK columns of a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    if TANH:
        # (1 + tanh(u)) / 2 = sigmoid(2u), with 2u = sqrt(8 / pi) (x + 0.044715 x^3).
        half = sigmoid(1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate))
    else:
        half = 0.5 + 0.5 * tl.erf(gate * 0.7071067811865476)
    tl.store(out + row * width + columns, (gate * half * up).to(out.dtype.element_ty), mask=inside)


def gelu_mul(gate_up: Tensor, tanh: bool) -> Tensor:
    """gate_up [T, 2I] → [T, I]."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((tokens, width))
    if out.numel():
        gelu_mul_kernel[(tokens, triton.cdiv(width, BLOCK))](gate_up, out, width, tanh, BLOCK)
    return out
