"""Memory of a parameter until it is packed."""

from __future__ import annotations

import math
import mmap

import torch


class Filling:
    """A tensor of zeros. On the CPU its memory goes back to the system row by row, which malloc would keep."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._memory: mmap.mmap | None = None
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        if device.type != "cpu" or len(shape) != 2:
            self.values = torch.zeros(shape, dtype=dtype, device=device)
            return
        count = math.prod(shape)
        self._memory = mmap.mmap(-1, max(count * dtype.itemsize, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.values = torch.frombuffer(self._memory, dtype=dtype, count=count).view(shape)
        """Keeps the memory for as long as it is held."""

    def drop_rows(self, end: int) -> None:
        """Rows before `end` mean nothing any more."""
        if self._memory is not None and hasattr(mmap, "MADV_DONTNEED"):
            length = end * self._row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            if length:
                self._memory.madvise(mmap.MADV_DONTNEED, 0, length)
