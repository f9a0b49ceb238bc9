"""One model over several gloo ranks: the test is rank 0, the others are processes that live for many models."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tokenwire_service.config import EngineConfig
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.runner.executor import PendingStep
from tokenwire_service.runner.step_plan import decode, encode
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import SchedulerOutput
from tokenwire_service.weights.progress import SilentProgress
from tokenwire_service.weights.resolved import ResolvedModel

_END_S = 30.0


class GlooRanks:
    """Carries plans to the other ranks as the arrays that they would get over a network."""

    def __init__(self, size: int, connections: list[Connection]) -> None:
        self.size = size
        self._connections = connections

    @contextmanager
    def load(self, resolved: ResolvedModel, config: EngineConfig) -> Iterator[RanksExecutor]:
        """The model on every rank."""
        for connection in self._connections:
            connection.send((resolved, config))
        worker = Worker(resolved, "float32", config, SilentProgress(), TensorParallelGroup(0, self.size))
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
def gloo_ranks(size: int, directory: Path) -> Iterator[GlooRanks]:
    """Ranks that meet by a file in `directory`."""
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
        yield GlooRanks(size, connections)
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


def _meet(rank: int, size: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)


def _follow(rank: int, size: int, store: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    _meet(rank, size, store)
    while (model := connection.recv()) is not None:
        worker = Worker(model[0], "float32", model[1], SilentProgress(), TensorParallelGroup(rank, size))
        while words := connection.recv_bytes():
            worker.launch(decode(np.frombuffer(words, dtype=np.int32))).result()
        del worker
    dist.destroy_process_group()
