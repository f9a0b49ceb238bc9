"""Selected rows of a packed batch."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type, call-arg"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit(do_not_specialize=["num_rows"])
def gather_rows_kernel(x, rows, out, num_rows, width, BLOCK: tl.constexpr):
    """x [num_rows, width], rows [R] → out [R, width]. One program: BLOCK columns of a row."""
    to = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    row = tl.load(rows + to).to(tl.int64)
    held = (row >= 0) & (row < num_rows)
    values = tl.load(x + row * width + columns, mask=inside & held, other=0.0)
    tl.store(out + to * width + columns, values, mask=inside)


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [T, E], rows int [R] → [R, E]; zeros for a row outside [0, T)."""
    num_rows, width = x.shape
    out = x.new_empty((len(rows), width))
    if out.numel():
        gather_rows_kernel[(len(rows), triton.cdiv(width, BLOCK))](x, rows, out, num_rows, width, BLOCK)
    return out
