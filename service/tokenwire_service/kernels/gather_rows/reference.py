"""Selected rows in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [T, E], rows int [R] → [R, E]."""
    return x[rows]
