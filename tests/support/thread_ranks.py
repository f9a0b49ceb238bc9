"""Ranks of one group as threads of the test, for what is too small to be worth processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class ThreadGroup(TensorParallelGroup):
    """One thread's view. Counts the bytes this rank gives to collectives."""

    meeting: _Meeting = field(default_factory=lambda: _Meeting(1))
    sent: list[int] = field(default_factory=list)

    def all_reduce(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._exchange(x)).sum(dim=0))

    def all_max(self, x: Tensor) -> Tensor:
        assert not x.isnan().any()
        return x.copy_(torch.stack(self._exchange(x)).amax(dim=0))

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._exchange(x), dim=-1)

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self.sent.append(x.nbytes)
        return self.meeting.exchange(self.rank, x)


def on_ranks(size: int, work: Callable[[ThreadGroup], _Result]) -> list[_Result]:
    """What `work` returns on each of `size` ranks."""
    meeting = _Meeting(size)

    def run(rank: int) -> _Result:
        try:
            return work(ThreadGroup(rank, size, None, meeting))
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
