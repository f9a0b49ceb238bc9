"""The sizes that ranks agree on."""

import threading
import time

import pytest
import torch
from torch import Tensor

from tests.support.thread_ranks import on_ranks
from tokenwire_service.errors import ConfigError
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.runner.machine import choose_num_shards
from tokenwire_service.runner.sizing import EngineSizes, agree_on_sizes, measure_together

CPU = torch.device("cpu")
GIB = 1 << 30


class Others:
    """What the other ranks say."""

    def __init__(self, *others: tuple[int, int, int]) -> None:
        self._others = others

    def all_reduce(self, x: Tensor) -> bool:
        return False

    def gather(self, x: Tensor) -> Tensor:
        return torch.stack([x, *(torch.tensor(other).reshape(3, 1) for other in self._others)])


def sizes(num_blocks: int, longest: int = 512) -> EngineSizes:
    return EngineSizes(num_blocks, 16, 8, 64, longest, 100)


def agree(own: EngineSizes, free_bytes: int, *others: tuple[int, int, int], asked: bool = False) -> EngineSizes:
    group = TensorParallelGroup(0, 1 + len(others), shortcut=Others(*others))
    return agree_on_sizes(own, free_bytes, group, CPU, asked=asked)


def test_they_are_those_of_the_poorest() -> None:
    assert agree(sizes(100), 7 * GIB, (90, 6 * GIB, 512), (120, 7 * GIB, 256)) == sizes(90, 256)
    assert agree(sizes(100), 7 * GIB) == sizes(100)


def test_a_rank_with_much_less_memory_is_named() -> None:
    told = r"rank 2 of 4 has 4096\.0 MiB free .* the others 8192\.0 MiB.*rank 2's device.*--max-batch-total-tokens"
    others = ((90, 100 * GIB, 512), (40, 4 * GIB, 512), (90, 6 * GIB, 512))
    with pytest.raises(ConfigError, match=told):
        agree(sizes(100), 8 * GIB, *others)
    assert agree(sizes(100), 8 * GIB, *others, asked=True) == sizes(40)


def test_a_little_less_is_no_error() -> None:
    """Four fifths of what is usual among the others; more than usual is harmless."""
    assert agree(sizes(100), 10 * GIB, (85, 8 * GIB, 512)) == sizes(85)
    assert agree(sizes(100), 80 * GIB, (85, 8 * GIB, 512), (85, 8 * GIB, 512)) == sizes(85)
    with pytest.raises(ConfigError, match="rank 1 of 2"):
        agree(sizes(100), 10 * GIB, (85, 8 * GIB - 1, 512))


def test_memory_is_measured_when_every_rank_has_come() -> None:
    """Each takes what it holds before it comes; what is free afterwards is the same to all."""
    taken, lock = [], threading.Lock()

    def load(group: TensorParallelGroup) -> int:
        time.sleep(0.05 * group.rank)
        with lock:
            taken.append(1)
        return measure_together(group, CPU, lambda device: 10 - len(taken))

    assert on_ranks(4, load) == [6] * 4


@pytest.mark.parametrize(
    ("asked", "device", "num_gpus", "chosen"),
    [(0, "auto", 4, 4), (2, "auto", 4, 2), (0, "auto", 0, 1), (3, "auto", 0, 3), (0, "cpu", 4, 1), (2, "cpu", 1, 2)],
)
def test_there_is_a_rank_for_each_visible_gpu_unless_asked(
    asked: int, device: str, num_gpus: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert choose_num_shards(asked, device) == chosen


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="--num-shard 4: 2 GPUs are visible"):
        choose_num_shards(4, "auto")
