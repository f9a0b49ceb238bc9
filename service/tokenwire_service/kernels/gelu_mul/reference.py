"""gelu(gate) * up in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gelu_mul(gate_up: Tensor, tanh: bool) -> Tensor:
    """gate_up [T, 2I] → [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh" if tanh else "none") * up
