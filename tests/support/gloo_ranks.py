"""One model over several gloo ranks: the test is rank 0, the others are processes that live for many models."""

from __future__ import annotations

import mmap
import multiprocessing
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tokenwire_service.config import EngineConfig
from tokenwire_service.kernels.exchange import memory_bytes
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.parallel.local_ranks import LocalRanks
from tokenwire_service.runner.executor import PendingStep
from tokenwire_service.runner.step_plan import decode, encode
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import SchedulerOutput
from tokenwire_service.weights.progress import SilentProgress
from tokenwire_service.weights.resolved import ResolvedModel

_END_S = 30.0


class GlooRanks:
    """Carries plans to the other ranks as the arrays that they would get over a network."""

    def __init__(self, size: int, connections: list[Connection], directory: Path, *, share_memory: bool) -> None:
        self.size = size
        self._connections = connections
        self._directory = directory
        self._share_memory = share_memory

    @contextmanager
    def load(self, resolved: ResolvedModel, config: EngineConfig) -> Iterator[RanksExecutor]:
        """The model on every rank."""
        with tempfile.NamedTemporaryFile(dir=self._directory) as memory:
            memory.truncate(memory_bytes(self.size))
            path = memory.name if self._share_memory else None
            for connection in self._connections:
                connection.send((resolved, config, path))
            worker = _make_worker(0, self.size, resolved, config, path)
        yield RanksExecutor(worker, self._connections)
        for connection in self._connections:
            connection.send_bytes(b"")


class RanksExecutor:
    """An Executor; `worker` is rank 0's."""

    runs_ahead = False

    def __init__(self, worker: Worker, connections: list[Connection]) -> None:
        self.worker = worker
        self._connections = connections

    def launch(self, output: SchedulerOutput) -> PendingStep:
        words = encode(output).tobytes()
        for connection in self._connections:
            connection.send_bytes(words)
        return self.worker.launch(output)

    def close(self) -> None:
        """The ranks go on to the next model."""


@contextmanager
def gloo_ranks(size: int, directory: Path, *, share_memory: bool = False) -> Iterator[GlooRanks]:
    """Ranks that meet by a file in `directory`; those that share memory leave little to gloo."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    store = str(directory / "store")
    try:
        for rank in range(1, size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_follow, args=(rank, size, store, theirs), daemon=True)
            process.start()
            theirs.close()
            connections.append(ours)
            processes.append(process)
        _meet(0, size, store)
        yield GlooRanks(size, connections, directory, share_memory=share_memory)
        for connection in connections:
            connection.send(None)
        for process in processes:
            process.join(_END_S)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
        if dist.is_initialized():
            dist.destroy_process_group()


def _make_worker(rank: int, size: int, resolved: ResolvedModel, config: EngineConfig, path: str | None) -> Worker:
    memory = None
    if path is not None:
        with Path(path).open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
    group, local = TensorParallelGroup(rank, size), LocalRanks(rank, size, memory)
    return Worker(resolved, "float32", config, SilentProgress(), group, local)


def _meet(rank: int, size: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)


def _follow(rank: int, size: int, store: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    _meet(rank, size, store)
    while (model := connection.recv()) is not None:
        worker = _make_worker(rank, size, *model)
        while words := connection.recv_bytes():
            worker.launch(decode(np.frombuffer(words, dtype=np.int32))).result()
        del worker
    dist.destroy_process_group()
