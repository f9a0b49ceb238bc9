"""The sizes that ranks agree on."""

import pytest
import torch
from torch import Tensor

from tokenwire_service.errors import ConfigError
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.runner.sizing import EngineSizes, agree_on_sizes

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


def test_they_are_those_of_the_poorest() -> None:
    group = TensorParallelGroup(0, 3, shortcut=Others((90, 6 * GIB, 512), (120, 8 * GIB, 256)))
    assert agree_on_sizes(sizes(100), 7 * GIB, group, CPU) == sizes(90, 256)
    assert agree_on_sizes(sizes(100), 7 * GIB, TensorParallelGroup(), CPU) == sizes(100)


def test_a_rank_with_much_less_memory_is_named() -> None:
    group = TensorParallelGroup(0, 3, shortcut=Others((90, 9 * GIB, 512), (40, 4 * GIB, 512)))
    with pytest.raises(ConfigError, match=r"rank 2 has 4096\.0 MiB of memory free, rank 1 9216\.0 MiB.*--num-shard"):
        agree_on_sizes(sizes(100), 8 * GIB, group, CPU)
