"""Ranks of one group as threads of the test, for what is too small to be worth processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from tokenwire_service.parallel.group import TensorParallelGroup

_Result = TypeVar("_Result")
_TIMEOUT_S = 60.0


class _Meeting:
    """Where ranks leave what they have and see what the others have."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=_TIMEOUT_S)
        self._left: list[Tensor | None] = [None] * size

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        self._left[rank] = x.clone()
        self._barrier.wait()
        found = [part.clone() for part in self._left if part is not None]
        self._barrier.wait()
        assert all(part.shape == x.shape and part.dtype == x.dtype for part in found), "ranks differ in shape or type"
        return found

    def abort(self) -> None:
        self._barrier.abort()


class _Thread:
    """A Shortcut: one thread's way to the others. Counts the bytes this rank gives."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self._rank = rank
        self._meeting = meeting
        self.sent = 0

    def all_reduce(self, x: Tensor) -> bool:
        x.copy_(self.gather(x).sum(dim=0))
        return True

    def gather(self, x: Tensor) -> Tensor:
        self.sent += x.nbytes
        return torch.stack(self._meeting.exchange(self._rank, x))


def bytes_sent(group: TensorParallelGroup) -> int:
    """What this rank of an `on_ranks` group gave to collectives so far."""
    assert isinstance(group.shortcut, _Thread)
    return group.shortcut.sent


def on_ranks(size: int, work: Callable[[TensorParallelGroup], _Result]) -> list[_Result]:
    """What `work` returns on each of `size` ranks."""
    meeting = _Meeting(size)

    def run(rank: int) -> _Result:
        try:
            return work(TensorParallelGroup(rank, size, shortcut=_Thread(rank, meeting)))
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
        # The rank that failed says why; the others only that somebody is missing.
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return [future.result() for future in futures]
