"""Host memory to the device and back, without making either wait for the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 4
"""Elements of 4 bytes each section starts at a multiple of: Triton compiles a kernel anew for pointers that are not
aligned to 16 bytes."""


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy of `array` on `device`; on the CPU the array itself, which then must not change.

    The copy goes through pinned memory: from pageable memory it would wait for all that is queued on the device.
    """
    if device.type == "cpu":
        return torch.from_numpy(array)
    source = torch.from_numpy(array)
    # The allocator hands pinned memory out again only after copies from it have ended.
    pinned = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    pinned.copy_(source)
    return pinned.to(device, non_blocking=True)


def upload_all(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Integer arrays [n] as int32 tensors [n] on `device`, which all arrive in one copy."""
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-len(array) // _ALIGNMENT) * _ALIGNMENT
    packed = np.zeros(size, dtype=np.int32)
    for start, array in zip(starts, arrays, strict=True):
        packed[start : start + len(array)] = array
    there = upload(packed, device)
    return [there[start : start + len(array)] for start, array in zip(starts, arrays, strict=True)]


class Download:
    """Tensors on their way to the host: queued on construction, read when they are there."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [_pinned_copy(tensor) if tensor.is_cuda else tensor.clone() for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> list[Tensor]:
        """The tensors on the host, in their order; waits for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def _pinned_copy(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
