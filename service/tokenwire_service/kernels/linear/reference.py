"""y = x W^T + b in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, K], weight [N, K], bias [N] or None → [T, N]."""
    return F.linear(x, weight, bias)
