"""The ranks of one machine, and the memory they share. It has no name: nothing is left of it when they are gone."""

from __future__ import annotations

import mmap
import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LocalRanks:
    """One rank's view of those on its machine."""

    rank: int = 0
    """Among them; also the number of its GPU."""
    size: int = 1
    memory: mmap.mmap | None = None
    """Shared by all ranks of the group, where all are on this machine and it is the CPU's."""


def allocate(num_bytes: int) -> int | None:
    """Descriptor of zeros, for the children that inherit it; None where the system has no such thing."""
    if sys.platform != "linux":
        return None
    descriptor = os.memfd_create("tokenwire-ranks")
    os.ftruncate(descriptor, num_bytes)
    return descriptor


def map_memory(descriptor: int) -> mmap.mmap:
    """All of it, for reading and writing; the descriptor is closed."""
    try:
        return mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)
