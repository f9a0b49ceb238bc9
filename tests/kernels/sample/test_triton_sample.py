"""The Triton sampler, interpreted, against its reference: the same tokens however a row is cut into tiles."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.triton_device import REFERENCE, TRITON
from tokenwire_service.kernels import sample
from tokenwire_service.kernels.sample import SampleColumns, _triton, reference
from tokenwire_service.kernels.sample._config import RowCut, mass_scale, row_cut
from tokenwire_service.kernels.sample.philox import uniform

BACKENDS = {"reference": REFERENCE, "triton": TRITON}
NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "seed": 0,
    "candidate": 0,
    "position": 0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
}
FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 100_000},
    {"top_p": 0.9},
    {"top_p": 0.999999},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.6, "top_k": 30, "top_p": 0.8},
    {"temperature": 2.5, "top_k": 200, "top_p": 0.95, "min_p": 0.1},
    {"temperature": 1.5, "top_p": 0.7, "min_p": 0.001},
]


def columns_of(rows: list[dict[str, Any]], integers: torch.dtype = torch.int64) -> SampleColumns:
    """One row for each entry; what an entry does not name is neutral."""
    kinds = {"seed": torch.int64, "candidate": integers, "position": integers, "top_k": integers}
    return SampleColumns(
        **{
            name: torch.tensor([row.get(name, neutral) for row in rows], dtype=kinds.get(name, torch.float32))
            for name, neutral in NEUTRAL.items()
        }
    )


def chosen(logits: Tensor, columns: SampleColumns, cut: RowCut | None = None, kind: str = "triton") -> sample.Choice:
    """What is drawn from `logits`, which are left alone and lie in memory full of NaN."""
    rows, vocab = logits.shape
    poisoned = torch.full((rows + 2, vocab + 9), torch.nan)
    poisoned[1:-1, 3 : 3 + vocab] = logits
    choice = sample.Choice(torch.full((rows,), -7), torch.zeros(rows, dtype=torch.bool))
    view = poisoned[1:-1, 3 : 3 + vocab]
    if cut is None:
        sample.sample_rows(view, columns, *choice, BACKENDS[kind])
    else:
        _triton.sample_rows(view, columns, *choice, cut)
    around = torch.ones_like(poisoned, dtype=torch.bool)
    around[1:-1, 3 : 3 + vocab] = False
    assert poisoned[around].isnan().all()
    return choice


def agree(actual: sample.Choice, expected: sample.Choice) -> bool:
    same = torch.equal(actual.valid, expected.valid)
    return same and torch.equal(actual.token_ids[expected.valid], expected.token_ids[expected.valid])


def extreme_seeds() -> tuple[int, int]:
    """Seeds whose draws are the lowest and highest of many: they take the first and the last token that is left."""
    count = 300_000
    draws = uniform(torch.arange(count), torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64))
    assert draws.min() < 1e-5
    assert draws.max() > 1 - 1e-5
    return int(draws.argmin()), int(draws.argmax())


LOWEST, HIGHEST = extreme_seeds()


@pytest.mark.parametrize(
    ("vocab", "cut"),
    [
        (257, None),
        (1000, RowCut(1000, tile=256, block=512)),
        (1537, None),
    ],
)
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_the_tokens_are_those_of_the_reference(vocab: int, cut: RowCut | None, spread: float) -> None:
    torch.manual_seed(vocab)
    rows = [row | {"seed": 31 * at, "position": at} for at, row in enumerate(FILTERS)]
    logits = torch.randn(len(rows), vocab) * spread
    expected = chosen(logits, columns_of(rows), kind="reference")
    assert agree(chosen(logits, columns_of(rows), cut), expected)
    assert expected.valid.all()


@pytest.mark.parametrize("seed", [LOWEST, HIGHEST])
def test_the_first_and_last_token_left_are_those_of_the_reference(seed: int) -> None:
    torch.manual_seed(8)
    rows = [row | {"seed": seed} for row in FILTERS]
    logits = torch.randn(len(rows), 700) * 3
    columns = columns_of(rows, torch.int32)
    assert agree(chosen(logits, columns, RowCut(700, tile=128)), chosen(logits, columns, kind="reference"))


def test_many_seeds_and_the_distribution() -> None:
    """Any mistake in philox, in the weights or in their sums shows here."""
    torch.manual_seed(9)
    count, vocab = 160, 7
    logits = (torch.randn(vocab) * 1.2).expand(count, -1)
    edges = [0, 1, -1, 2**63 - 1, -(2**63), 2**32, 2**32 - 1]
    rows = [{"seed": seed, "candidate": c, "position": 2**31 - 1} for seed, c in itertools.product(edges, (0, 3))]
    rows += [{"seed": 5, "position": at} for at in range(count - len(rows))]
    rows = [row | {"temperature": 0.9} for row in rows]
    drawn = chosen(logits, columns_of(rows))
    assert agree(drawn, chosen(logits, columns_of(rows), kind="reference"))
    expected = (logits[0] / 0.9).softmax(-1) * count
    observed = torch.bincount(drawn.token_ids, minlength=vocab)
    assert float(((observed - expected) ** 2 / expected).sum()) < 22.5  # 6 degrees of freedom, p = 0.001


def test_a_row_depends_on_nothing_but_itself() -> None:
    torch.manual_seed(10)
    rows = [row | {"seed": at} for at, row in enumerate(FILTERS)][::2]
    logits = torch.randn(len(rows), 900) * 2
    together = chosen(logits, columns_of(rows))
    cuts = itertools.cycle([RowCut(900, tile=64, block=256), RowCut(900, tile=512)])
    for at, (row, cut) in enumerate(zip(rows, cuts, strict=False)):
        alone = chosen(logits[at : at + 1], columns_of([row]), cut)
        assert alone.token_ids.tolist() == together.token_ids[at : at + 1].tolist()


@pytest.mark.parametrize("seed", [LOWEST, HIGHEST])
def test_ties_stay(seed: int) -> None:
    """Every filter meets equal weights at its cut: all of them are kept, as by the reference."""
    logits = torch.tensor([3.0, 1.0, 2.0, 1.0, 2.0, 0.0, 2.0, -1.0] * 40)[:300].expand(6, -1)
    rows = [
        {"top_k": 5},
        {"top_k": 38},
        {"top_p": 0.5},
        {"top_p": 0.8},
        {"min_p": 0.36},
        {"top_k": 60, "top_p": 0.7},
    ]
    columns = columns_of([row | {"seed": seed} for row in rows])
    assert agree(chosen(logits, columns, RowCut(300, tile=64)), chosen(logits, columns, kind="reference"))


def test_equal_logits_draw_every_token_alike() -> None:
    rows = [{"seed": at, **filtered} for at in range(8) for filtered in ({}, {"top_p": 0.5}, {"temperature": 1e30})]
    logits = torch.full((len(rows), 1024), -3.25)
    drawn = chosen(logits, columns_of(rows))
    assert agree(drawn, chosen(logits, columns_of(rows), kind="reference"))
    assert drawn.token_ids[0] == drawn.token_ids[1] == drawn.token_ids[2]


@pytest.mark.parametrize("kind", BACKENDS)
def test_rows_that_cannot_be_sampled_are_told(kind: str) -> None:
    torch.manual_seed(11)
    logits = torch.randn(9, 600)
    logits[1, 599] = torch.nan
    logits[2, 0] = torch.inf
    logits[3] = -torch.inf
    logits[4] = torch.nan
    logits[5, 1:] = -torch.inf
    logits[7, 300] = torch.nan
    logits[8] = -torch.inf
    filters = {"top_k": 5, "top_p": 0.9, "min_p": 0.01}
    rows = [
        filters,
        filters,
        filters,
        filters,
        {},
        filters,
        {"temperature": 0.0},
        {"temperature": 0.0},
        {"temperature": 0.0},
    ]
    choice = chosen(logits, columns_of(rows), kind=kind)
    assert choice.valid.tolist() == [True, False, False, False, False, True, True, False, False]
    assert choice.token_ids[5] == 0
    assert ((choice.token_ids >= 0) & (choice.token_ids < 600)).all()


@pytest.mark.parametrize("kind", BACKENDS)
def test_greedy_rows_take_the_lowest_of_equals(kind: str) -> None:
    logits = torch.zeros(4, 1500)
    logits[0, [77, 1200]] = 5.0
    logits[1, [1024, 1499]] = 2.0
    logits[3] = -torch.inf
    logits[3, 1100] = -1e30
    expected = [77, 1024, 0, 1100]
    greedy = columns_of([{"temperature": 0.0, "top_k": 3, "top_p": 0.1, "min_p": 0.5}] * 4)
    assert chosen(logits, greedy, kind=kind).token_ids.tolist() == expected
    assert sample.greedy(logits, BACKENDS[kind]).token_ids.tolist() == expected
    assert sample.greedy(logits, BACKENDS[kind]).valid.all()
    tiny = columns_of([{"temperature": 1e-38, "seed": at} for at in range(4)])
    assert chosen(logits[[3, 3]], dataclasses.replace(tiny, **halved(tiny)), kind=kind).token_ids.tolist() == [
        1100,
        1100,
    ]


def halved(columns: SampleColumns) -> dict[str, Tensor]:
    return {name: getattr(columns, name)[:2] for name in NEUTRAL}


@pytest.mark.parametrize("seed", [LOWEST, HIGHEST])
@pytest.mark.parametrize("kind", BACKENDS)
def test_masked_tokens_are_never_drawn(kind: str, seed: int) -> None:
    torch.manual_seed(12)
    logits = torch.randn(6, 520)
    logits[:, :90] = -torch.inf
    logits[:, 400:] = -torch.inf
    rows = [{}, {"temperature": 50.0}, {"top_k": 519}, {"top_p": 0.9999999}, {"min_p": 1e-30}, {"temperature": 1e30}]
    tokens = chosen(logits, columns_of([row | {"seed": seed} for row in rows]), kind=kind).token_ids
    assert ((tokens >= 90) & (tokens < 400)).all()


def test_typical_rows_run_the_reference_and_change_no_other() -> None:
    torch.manual_seed(13)
    logits = torch.randn(3, 500) * 2
    params = sample.DrawParams(
        temperature=torch.tensor([1.0, 0.8, 1.3]),
        seed=torch.tensor([4, 5, 6]),
        candidate=torch.zeros(3, dtype=torch.int64),
        position=torch.arange(3),
        top_k=torch.tensor([20, 30, 9]),
        top_p=torch.tensor([0.9, 0.5, 0.7]),
        min_p=torch.tensor([0.2, 0.1, 0.0]),
        typical_p=torch.tensor([1.0, 0.6, 0.9]),
        top_k_rows=(0, 1),
        top_p_rows=(1, 2),
        typical_rows=(1,),
    )
    expected = reference.draw(logits.clone(), params)
    assert agree(sample.draw(logits.clone(), params, BACKENDS["triton"]), expected)
    assert params.only((1, 2)).top_k_rows == (0,)
    assert params.only((1, 2)).typical_rows == (0,)


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("vocab", [1, 2, 33])
def test_tiny_vocabularies_and_no_rows(kind: str, vocab: int) -> None:
    columns = columns_of([{"top_k": 1}, {"top_p": 0.5}])
    tokens = chosen(torch.arange(2.0 * vocab).view(2, vocab), columns, kind=kind).token_ids
    assert tokens.tolist()[0] == vocab - 1
    assert tokens[1] < vocab
    assert chosen(torch.zeros(0, vocab), columns_of([]), kind=kind).token_ids.tolist() == []
    assert sample.greedy(torch.zeros(0, vocab), BACKENDS[kind]).token_ids.tolist() == []


def test_cuts_cover_every_vocabulary() -> None:
    for rows, vocab in itertools.product((1, 7, 64, 256), (1, 1024, 1025, 32_000, 128_256, 262_144, 1_000_003)):
        cut = row_cut(rows, vocab)
        assert (cut.num_tiles - 1) * cut.tile < vocab <= cut.num_tiles * cut.tile
        assert cut.num_tiles <= cut.num_lanes < 2 * cut.num_tiles
        assert cut.num_lanes & (cut.num_lanes - 1) == 0
        assert 1 <= cut.columns <= cut.tile
        assert cut.tile % cut.columns == 0
        assert vocab * mass_scale(vocab) < 2**62


@pytest.mark.parametrize("kind", BACKENDS)
def test_what_does_not_fit_is_refused(kind: str) -> None:
    logits, columns = torch.zeros(2, 10), columns_of([{}, {}])
    ids, valid = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="token_ids must be int64"):
        sample.sample_rows(logits, columns, ids.int(), valid, BACKENDS[kind])
    with pytest.raises(ValueError, match="valid must be bool"):
        sample.sample_rows(logits, columns, ids, valid[:1], BACKENDS[kind])
    with pytest.raises(ValueError, match="columns of 1 rows"):
        sample.sample_rows(logits, columns_of([{}]), ids, valid, BACKENDS[kind])
    with pytest.raises(ValueError, match="rows in one piece"):
        sample.sample_rows(torch.zeros(10, 2).T, columns, ids, valid, BACKENDS[kind])
