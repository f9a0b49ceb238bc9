"""Sums through symmetric memory: which messages take it, and that they come to the same. The kernels are acted here."""

import pytest
import torch
from torch import Tensor

from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.parallel.symmetric import SymmetricSum, Way, choose_way

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("num_bytes", "size", "multicast", "way"),
    [
        (16, 2, False, Way.ONE_SHOT),
        (8192 * 2, 8, True, Way.ONE_SHOT),
        (MIB, 2, False, Way.ONE_SHOT),
        (MIB + 16, 2, True, None),
        (512 * KIB, 4, False, Way.ONE_SHOT),
        (512 * KIB + 16, 4, False, None),
        (512 * KIB + 16, 4, True, Way.MULTICAST),
        (256 * KIB, 8, False, Way.ONE_SHOT),
        (8 * MIB, 8, True, Way.MULTICAST),
        (8 * MIB + 16, 8, True, None),
        (16, 3, True, None),
        (16, 1, True, None),
        (24, 2, False, None),
    ],
)
def test_the_way_goes_by_size(num_bytes: int, size: int, multicast: bool, way: Way | None) -> None:
    assert choose_way(num_bytes, size, multicast=multicast) is way


class Acted:
    """Kernels of two ranks of which the other holds tens."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def one_shot_all_reduce_out(self, input: Tensor, reduce_op: str, group: str, out: Tensor) -> Tensor:
        self.calls.append("one shot")
        assert (reduce_op, group) == ("sum", "ranks")
        return out.copy_(input + 10)

    def multimem_all_reduce_(self, input: Tensor, reduce_op: str, group: str) -> Tensor:
        self.calls.append("multicast")
        assert (reduce_op, group) == ("sum", "ranks")
        return input.add_(10)


@pytest.mark.parametrize(("size", "rows", "called"), [(2, 3, "one shot"), (4, 40_000, "multicast")])
def test_a_sum_is_brought_back_into_its_tensor(size: int, rows: int, called: str) -> None:
    kernels = Acted()
    shortcut = SymmetricSum(torch.full((1 << 20,), torch.nan), size, "ranks", kernels, multicast=True)
    group = TensorParallelGroup(0, size, shortcut=shortcut)
    x = torch.arange(rows * 8, dtype=torch.float32).view(rows, 8)
    expected = x + 10
    for _ in range(2):
        assert group.all_reduce(x.copy_(expected - 10)) is x
        assert torch.equal(x, expected)
    assert kernels.calls == [called] * 2


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(8, 3).T,
        torch.zeros(8, dtype=torch.float16),
        torch.zeros(0, 8),
        torch.zeros(65),
        torch.zeros(6),
    ],
    ids=["strided", "other type", "empty", "longer than the buffer", "not aligned"],
)
def test_other_tensors_are_left_to_the_twin(x: Tensor) -> None:
    kernels = Acted()
    shortcut = SymmetricSum(torch.zeros(64), 2, "ranks", kernels, multicast=True)
    assert not shortcut.all_reduce(x)
    assert shortcut.gather(torch.zeros(8)) is None
    assert kernels.calls == []
