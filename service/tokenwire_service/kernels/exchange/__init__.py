"""Sums and gathers between the ranks of one machine's CPU through memory they share, in one shot (Thakur, Rabenseifner
and Gropp, 2005: for few ranks and small messages nothing needs fewer steps). Some microseconds where a loopback
connection takes hundreds. What they mean is torch.distributed's all_reduce and all_gather; see parallel/group.py.

The memory: for each rank 64 bytes, which count the exchanges it has written its part of and those who sleep until it
has; then twice, for even and odd exchanges, a slot of SLOT_BYTES for each rank. It begins as zeros.
"""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

from tokenwire_service.kernels._cpu_library import CpuLibrary

SLOT_BYTES = 1 << 20
_FLAG_BYTES = 64


def memory_bytes(size: int) -> int:
    """Of the memory that `size` ranks share."""
    return size * (_FLAG_BYTES + 2 * SLOT_BYTES)


class _State(ctypes.Structure):
    """As in _cpu.cpp."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("slot_bytes", ctypes.c_int64),
        ("turn", ctypes.c_int64),
    )


class SharedExchange:
    """One rank's. Every rank takes part in the same exchanges in the same order; one thread calls. Whoever waits for a
    rank that is gone waits forever: ending this process is somebody else's business."""

    def __init__(self, library: CpuLibrary, memory: mmap.mmap, rank: int, size: int) -> None:
        """`memory` of at least `memory_bytes(size)`, mapped by all ranks. Raises ValueError when it is shorter."""
        if len(memory) < memory_bytes(size):
            raise ValueError(f"{size} ranks need {memory_bytes(size)} bytes of shared memory, got {len(memory)}")
        self._library = library
        self._memory = memory
        self._size = size
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._state = _State(address, rank, size, SLOT_BYTES, 0)
        self._address = ctypes.addressof(self._state)

    def all_reduce(self, x: Tensor) -> bool:
        """x, contiguous float32, becomes the sum over ranks. False, and nothing happened, for another tensor."""
        if x.dtype is not torch.float32 or not x.is_contiguous() or x.device.type != "cpu":
            return False
        self._library.run("tw_all_reduce", x.data_ptr(), self._address, x.numel())
        return True

    def gather(self, x: Tensor) -> Tensor | None:
        """x, contiguous → [ranks, *x.shape] with everybody's x. None, and nothing happened, for another tensor."""
        if not x.is_contiguous() or x.device.type != "cpu":
            return None
        out = torch.empty((self._size, *x.shape), dtype=x.dtype)
        self._library.run("tw_all_gather", x.data_ptr(), out.data_ptr(), self._address, x.nbytes)
        return out
