"""The generator against the known answers published with Random123, and the draws built on it."""

import pytest
import torch

from tokenwire_service.kernels.sample.philox import philox4x32, uniform

KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    result = philox4x32(torch.tensor([words(counter)]), torch.tensor([words(key)]))
    assert result.tolist() == [words(expected)]


def test_rows_are_independent() -> None:
    counters = torch.tensor([words(counter) for counter, _, _ in KNOWN_ANSWERS])
    keys = torch.tensor([words(key) for _, key, _ in KNOWN_ANSWERS])
    assert philox4x32(counters, keys).tolist() == [words(expected) for _, _, expected in KNOWN_ANSWERS]


def test_every_part_of_the_key_changes_the_draw() -> None:
    seeds = torch.tensor([1, 2, 1 + (1 << 40), -1, 1, 1])
    candidates = torch.tensor([0, 0, 0, 0, 1, 0])
    positions = torch.tensor([5, 5, 5, 5, 5, 6])
    draws = uniform(seeds, candidates, positions)
    assert len(set(draws.tolist())) == 6
    assert bool(((draws > 0) & (draws < 1)).all())


def test_draws_are_uniform() -> None:
    count = 40_000
    draws = uniform(torch.full((count,), 7), torch.zeros(count, dtype=torch.int64), torch.arange(count))
    observed = torch.histc(draws, bins=20, min=0, max=1)
    chi_square = float(((observed - count / 20) ** 2 / (count / 20)).sum())
    assert chi_square < 43.8  # 19 degrees of freedom, p = 0.001
