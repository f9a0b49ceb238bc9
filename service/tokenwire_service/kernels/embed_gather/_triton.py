"""Embedding lookup in one rank's part of the vocabulary."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, arg-type, call-arg"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit(do_not_specialize=["first_id", "num_ids"])
def embed_gather_kernel(ids, table, out, first_id, num_ids, width, table_stride, BLOCK: tl.constexpr):
    """ids [T], table [num_ids, width] with rows table_stride apart → out [T, width]. One program: BLOCK columns of a
    row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    local = tl.load(ids + row).to(tl.int64) - first_id
    held = (local >= 0) & (local < num_ids)
    values = tl.load(table + local * table_stride + columns, mask=inside & held, other=0.0)
    tl.store(out + row * width + columns, values, mask=inside)


def embed_gather(input_ids: Tensor, table: Tensor, first_id: int) -> Tensor:
    """input_ids int [T], table [rows, E] → [T, E]; zeros where an id is not in [first_id, first_id + rows)."""
    tokens, (num_ids, width) = len(input_ids), table.shape
    out = table.new_empty((tokens, width))
    if out.numel():
        grid = (tokens, triton.cdiv(width, BLOCK))
        embed_gather_kernel[grid](input_ids, table, out, first_id, num_ids, width, table.stride(0), BLOCK)
    return out
