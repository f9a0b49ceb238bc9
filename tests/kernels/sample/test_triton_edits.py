"""Edits and scores in Triton, interpreted, against their reference at odd shapes and in memory full of NaN."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.triton_device import REFERENCE, TRITON
from tokenwire_service.kernels import sample
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.sample import LogitEdits, Penalties, TokenBias, TokenBits, TokenMask

BACKENDS = {"reference": REFERENCE, "triton": TRITON}
TRITON = BACKENDS["triton"]


def edited(logits: Tensor, edits: LogitEdits, backend: Backend) -> Tensor:
    """The edited copy of `logits`; what lies around it must stay NaN."""
    rows, vocab = logits.shape
    poisoned = torch.full((rows + 2, vocab + 5), torch.nan)
    poisoned[1:-1, 2 : 2 + vocab] = logits
    sample.edit_logits(poisoned[1:-1, 2 : 2 + vocab], edits, backend)
    result = poisoned[1:-1, 2 : 2 + vocab].clone()
    poisoned[1:-1, 2 : 2 + vocab] = torch.nan
    assert poisoned.isnan().all()
    return result


def pairs(rows: int, vocab: int, count: int) -> tuple[Tensor, Tensor]:
    """Distinct pairs, in no order."""
    flat = torch.randperm(rows * vocab)[:count]
    return flat // vocab, flat % vocab


def penalties(rows: int, vocab: int, count: int) -> Penalties:
    generated = torch.randint(0, 4, (count,)).float()
    return Penalties(
        *pairs(rows, vocab, count),
        generated,
        generated + torch.randint(1, 4, (count,)),
        torch.randint(10, 50, (rows,)).float(),
        repetition=torch.rand(rows) + 0.5,
        presence=torch.randn(rows),
        frequency=torch.randn(rows),
        context_frequency=torch.randn(rows),
    )


EDITS: dict[str, Callable[[int, int], LogitEdits]] = {
    "none": lambda s, v: LogitEdits(),
    "penalties": lambda s, v: LogitEdits(penalties=penalties(s, v, 300)),
    "bias": lambda s, v: LogitEdits(bias=TokenBias(*pairs(s, v, 257), torch.randn(257))),
    "repeated-bias": lambda s, v: LogitEdits(
        bias=TokenBias(torch.tensor([1, 1, 1]), torch.tensor([4, 4, 5]), torch.tensor([0.5, 0.25, 8.0]))
    ),
    "allowed": lambda s, v: LogitEdits(allowed=TokenMask(torch.tensor([0, 2, 2, 2]), torch.tensor([v - 1, 0, 7, 7]))),
    "forbidden": lambda s, v: LogitEdits(forbidden=TokenMask(*pairs(s, v, 40))),
    "bits": lambda s, v: LogitEdits(allowed_bits=random_bits(s, v)),
    "empty": lambda s, v: LogitEdits(
        forbidden=TokenMask(*pairs(s, v, 0)), bias=TokenBias(*pairs(s, v, 0), torch.zeros(0))
    ),
    "all": lambda s, v: LogitEdits(
        penalties=penalties(s, v, 100),
        bias=TokenBias(*pairs(s, v, 30), torch.randn(30)),
        allowed=TokenMask(torch.full((60,), 1), torch.randperm(v)[:60]),
        forbidden=TokenMask(torch.full((9,), 1), torch.randperm(v)[:9]),
        allowed_bits=random_bits(s, v),
    ),
}


def random_bits(rows: int, vocab: int) -> TokenBits:
    words = torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32))).to(torch.int32)
    return TokenBits(torch.arange(rows) % 2 == 1, words)


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize(("rows", "vocab"), [(3, 257), (4, 2050)])
def test_edits_are_those_of_the_reference(name: str, rows: int, vocab: int) -> None:
    torch.manual_seed(rows)
    edits, logits = EDITS[name](rows, vocab), torch.randn(rows, vocab) * 3
    expected = edited(logits, edits, BACKENDS["reference"])
    assert torch.allclose(edited(logits, edits, TRITON), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(expected, logits) == (name in ("none", "empty"))


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("vocab", [31, 32, 70])
def test_bits_allow_what_they_name(kind: str, vocab: int) -> None:
    words = torch.zeros(3, -(-vocab // 32), dtype=torch.int32)
    allowed = [0, 5, 30]
    for token in allowed:
        words[:2, token // 32] |= 1 << token % 32
    if vocab > 32:
        allowed.append(63)
        words[:, 1] = -(2**31)  # bit 31
    bits = TokenBits(torch.tensor([True, False, True]), words)
    logits = edited(torch.zeros(3, vocab), LogitEdits(allowed_bits=bits), BACKENDS[kind])
    assert logits[0].isfinite().nonzero().flatten().tolist() == allowed
    assert logits[1].isfinite().all()
    assert logits[2].isfinite().nonzero().flatten().tolist() == [token for token in allowed if token > 32]


def test_bits_of_another_vocabulary_are_refused() -> None:
    bits = TokenBits(torch.tensor([True]), torch.zeros(1, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="allowed_bits"):
        sample.edit_logits(torch.zeros(1, 65), LogitEdits(allowed_bits=bits))


@pytest.mark.parametrize(("rows", "vocab"), [(1, 5), (4, 1000), (3, 4097), (2, 9001)])
def test_scores_are_those_of_the_reference(rows: int, vocab: int) -> None:
    torch.manual_seed(vocab)
    logits = torch.randn(rows, vocab + 3)[:, :vocab] * 8
    logits[0, vocab // 2 :] = -torch.inf
    token_ids = torch.randint(0, vocab // 2, (rows,))
    values = torch.cat([logits.gather(-1, token_ids.unsqueeze(-1)), torch.randn(rows, 2)], dim=-1)
    assert torch.allclose(sample.log_normalizer(logits, TRITON), sample.log_normalizer(logits), atol=1e-5)
    assert torch.equal(sample.ranks(logits, values, TRITON), sample.ranks(logits, values))
    actual, expected = (sample.score(logits, token_ids, backend) for backend in (TRITON, None))
    assert torch.allclose(actual.logprobs, expected.logprobs, atol=1e-5)
    assert torch.equal(actual.ranks, expected.ranks)
    assert torch.allclose(
        expected.logprobs, logits.log_softmax(-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1), atol=1e-5
    )


def test_normalizers_of_rows_that_have_none() -> None:
    logits = torch.zeros(5, 4100)
    logits[0] = -torch.inf
    logits[1, 4099] = torch.inf
    logits[2, 3] = torch.nan
    logits[3, :4096] = -torch.inf
    logits[3, 4096:] = -200.0
    logits[4, 4098] = 300.0
    actual, expected = sample.log_normalizer(logits, TRITON), sample.log_normalizer(logits)
    assert torch.allclose(actual, expected, equal_nan=True)


def test_a_normalizer_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(14)
    logits = torch.randn(3, 5000) * 3
    together = sample.log_normalizer(logits, TRITON)
    assert torch.equal(together[1:2], sample.log_normalizer(logits[1:2], TRITON))


def test_nothing_to_score() -> None:
    assert sample.log_normalizer(torch.zeros(0, 9), TRITON).shape == (0,)
    assert sample.ranks(torch.zeros(2, 9), torch.zeros(2, 0), TRITON).shape == (2, 0)
    assert sample.score(torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64), TRITON).ranks.shape == (0,)
