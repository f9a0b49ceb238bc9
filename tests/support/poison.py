"""Tensors in the middle of memory that nobody may use."""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 64


class Poisoned:
    """A copy of a tensor with NaN before and behind it: reading there shows in results, writing in `check`."""

    def __init__(self, tensor: Tensor) -> None:
        self._memory = torch.full((tensor.numel() + 2 * MARGIN,), float("nan"), dtype=tensor.dtype)
        self.tensor = self._memory[MARGIN : MARGIN + tensor.numel()].view(tensor.shape)
        self.tensor.copy_(tensor)

    def check(self) -> None:
        """Raises AssertionError where something was written around the tensor."""
        around = torch.cat((self._memory[:MARGIN], self._memory[-MARGIN:])).float()
        assert around.isnan().all(), "memory outside the tensor was written"


def poisoned(tensor: Tensor) -> Tensor:
    """The copy alone, for tensors that are only read."""
    return Poisoned(tensor).tensor
