"""Sums and gathers through shared memory, between ranks that are threads here: a rank's call holds no lock."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tokenwire_service.kernels._cpu_library import CpuLibrary, load_cpu_library
from tokenwire_service.kernels.exchange import SLOT_BYTES, SharedExchange, memory_bytes
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.parallel.local_ranks import allocate, map_memory


def library() -> CpuLibrary:
    loaded = load_cpu_library()
    assert loaded is not None, "these tests need a C++ compiler"
    return loaded


def run_ranks(size: int, work: Callable[[TensorParallelGroup], Any], num_threads: int = 1) -> list[Any]:
    """What `work` returns on each of `size` ranks."""
    library()  # compiled once, before anybody waits
    descriptor = allocate(memory_bytes(size))
    assert descriptor is not None
    memory = map_memory(descriptor)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        torch.set_num_threads(num_threads)
        results[rank] = work(TensorParallelGroup(rank, size, shortcut=SharedExchange(library(), memory, rank, size)))

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank waits forever"
    return results


def part(rank: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_sum_is_the_same_bits_on_every_rank(size: int, num_threads: int) -> None:
    shapes = [(1,), (5,), (1, 576), (3, 577), (1025,), (0, 4), (2, SLOT_BYTES // 4 + 13)]
    shapes = shapes * 3 if size == 2 else shapes

    def work(group: TensorParallelGroup) -> list[torch.Tensor]:
        return [group.all_reduce(part(100 * at + group.rank, *shape)) for at, shape in enumerate(shapes)]

    results = run_ranks(size, work, num_threads)
    for at, shape in enumerate(shapes):
        expected = part(100 * at, *shape)
        for rank in range(1, size):
            expected = expected + part(100 * at + rank, *shape)
        for rank in range(size):
            assert torch.equal(results[rank][at], expected), (shape, rank)


def test_many_turns_never_mix() -> None:
    def work(group: TensorParallelGroup) -> list[float]:
        return [float(group.all_reduce(torch.full((7,), float(turn * (group.rank + 1))))[3]) for turn in range(2000)]

    for result in run_ranks(2, work):
        assert result == [3.0 * turn for turn in range(2000)]


def test_gathers_of_every_type() -> None:
    big = SLOT_BYTES // 8 + 3

    def work(group: TensorParallelGroup) -> list[torch.Tensor]:
        rank = group.rank
        return [
            group.all_gather(torch.tensor([[1, 2], [3, 4]]) + 10 * rank),
            group.all_gather(torch.tensor([rank == 1, True])),
            group.all_gather(torch.arange(6, dtype=torch.float16).reshape(2, 3).T + rank),
            group.all_gather(torch.arange(big) * (rank + 1)),
            group.all_max(torch.tensor([[1.5, -torch.inf], [-3.0, 2.0]]) * (1 - 2 * rank)),
            group.all_max(torch.tensor([rank, 5 - rank])),
        ]

    for result in run_ranks(3, work):
        assert result[0].tolist() == [[1, 2, 11, 12, 21, 22], [3, 4, 13, 14, 23, 24]]
        assert result[1].tolist() == [False, True, True, True, False, True]
        assert result[2].shape == (3, 6)
        assert result[2][2].tolist() == [2.0, 5.0, 3.0, 6.0, 4.0, 7.0]
        assert torch.equal(result[3], torch.cat([torch.arange(big) * (rank + 1) for rank in range(3)]))
        assert result[4].tolist() == [[1.5, torch.inf], [9.0, 2.0]]
        assert result[5].tolist() == [2, 5]


def test_a_sum_is_recorded_with_the_kernels_around_it() -> None:
    from tokenwire_service.kernels._tape import CpuGraphRecorder

    def work(group: TensorParallelGroup) -> list[torch.Tensor]:
        assert isinstance(group.shortcut, SharedExchange)
        x = torch.ones(64)
        graph = CpuGraphRecorder(group.shortcut._library).record(lambda: group.all_reduce(x))
        replayed = []
        for turn in range(5):
            x.fill_(turn + group.rank)
            graph.replay()
            replayed.append(x.clone())
        return replayed

    for result in run_ranks(2, work):
        assert [x.tolist() for x in result] == [[2.0 * turn + 1.0] * 64 for turn in range(5)]


def test_other_tensors_are_left_to_others() -> None:
    memory = map_memory(allocate(memory_bytes(1)) or 0)
    exchange = SharedExchange(library(), memory, 0, 1)
    assert not exchange.all_reduce(torch.ones(3, dtype=torch.bfloat16))
    assert not exchange.all_reduce(torch.ones(3, 4).T)
    assert exchange.gather(torch.ones(3, 4).T) is None
    with pytest.raises(ValueError, match="shared memory"):
        SharedExchange(library(), memory, 0, 2)
