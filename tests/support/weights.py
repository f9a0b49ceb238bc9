"""A resolved model's tensors, all in memory."""

from __future__ import annotations

from torch import Tensor

from tokenwire_service.weights.resolved import ResolvedModel
from tokenwire_service.weights.stored import whole
from tokenwire_service.weights.stream import stream_tensors


def whole_tensors(resolved: ResolvedModel) -> dict[str, Tensor]:
    """By their Hugging Face names, in the type they are stored in."""
    return {name: whole(tensor) for name, tensor in stream_tensors(resolved)}
