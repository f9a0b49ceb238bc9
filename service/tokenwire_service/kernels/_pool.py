"""Memory for results of native kernels that is used again as soon as nobody holds it: warm, and mapped already."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


class Pool:
    """One thread's; whoever holds a tensor or a view of one keeps its memory."""

    def __init__(self) -> None:
        self._storages: defaultdict[int, list[torch.UntypedStorage]] = defaultdict(list)

    @property
    def num_bytes(self) -> int:
        """In use or waiting to be."""
        return sum(size * len(storages) for size, storages in self._storages.items())

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor with whatever is in it."""
        num_bytes = 1 << max(math.prod(shape) * dtype.itemsize - 1, 63).bit_length()
        strides = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
        with _disable_current_modes():
            return torch.empty(0, dtype=dtype).set_(self._free(num_bytes), 0, shape, strides)

    def _free(self, num_bytes: int) -> torch.UntypedStorage:
        """Sizes are powers of two, so that graphs of similar sizes share."""
        for storage in self._storages[num_bytes]:
            if torch._C._storage_Use_Count(storage._cdata) == 1:
                return storage
        storage = torch.UntypedStorage(num_bytes)  # type: ignore[no-untyped-call]
        self._storages[num_bytes].append(storage)
        return storage
