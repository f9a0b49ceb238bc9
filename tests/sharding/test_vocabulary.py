"""Choosing and scoring tokens of a cut vocabulary, against one rank that holds all of it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.thread_ranks import bytes_sent, on_ranks
from tokenwire_service.kernels.backend import Backend, reference_backend
from tokenwire_service.kernels.linear import pack_weight
from tokenwire_service.kernels.sample import Choice, DrawParams, RowScores, SampleColumns, reference, sharded
from tokenwire_service.layers.embedding import VocabParallelHead
from tokenwire_service.models.checkpoint import Cut, Part
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.shard import rank_slice
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.runner.vocabulary import ShardedVocabulary, WholeVocabulary, make_vocabulary

SIZES = [2, 3, 4]
VOCAB = 1031
ROWS = 48
SPEC = read_spec(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 31,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
)


def part_of(logits: Tensor, group: TensorParallelGroup) -> Tensor:
    """The rank's columns, -inf beyond the vocabulary."""
    width = -(-logits.shape[1] // group.size)
    padded = torch.nn.functional.pad(logits, (0, width * group.size - logits.shape[1]), value=-torch.inf)
    return padded[:, group.rank * width : (group.rank + 1) * width].clone()


def some_logits(seed: int = 0, rows: int = ROWS, vocab: int = VOCAB) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def params(rows: int, **filters: list[float]) -> DrawParams:
    """Filters [rows], off where their value is."""
    off = {"top_k": 0.0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    values = {name: filters.get(name, [default] * rows) for name, default in off.items()}

    def on(name: str) -> tuple[int, ...]:
        return tuple(row for row, value in enumerate(values[name]) if value != off[name])

    return DrawParams(
        temperature=torch.linspace(0.3, 1.5, rows),
        seed=torch.arange(rows) * 7919 - 5,
        candidate=torch.arange(rows) % 3,
        position=torch.arange(rows) + 11,
        top_k=torch.tensor(values["top_k"], dtype=torch.int64),
        top_p=torch.tensor(values["top_p"], dtype=torch.float32),
        min_p=torch.tensor(values["min_p"], dtype=torch.float32),
        typical_p=torch.tensor(values["typical_p"], dtype=torch.float32),
        top_k_rows=on("top_k"),
        top_p_rows=on("top_p"),
        min_p_rows=on("min_p"),
        typical_rows=on("typical_p"),
    )


def assert_draws_agree(logits: Tensor, given: DrawParams, size: int) -> Choice:
    alone = reference.draw(logits.clone(), given)
    for choice in on_ranks(size, lambda group: sharded.draw(part_of(logits, group), given, group)):
        assert choice.valid.tolist() == alone.valid.tolist()
        assert choice.token_ids[alone.valid].tolist() == alone.token_ids[alone.valid].tolist()
        assert 0 <= int(choice.token_ids.min()) <= int(choice.token_ids.max()) < logits.shape[1]
    return alone


FILTERS: dict[str, list[float]] = {
    "top_k": [1, 2, 5, 40, 400, 2000],
    "top_p": [0.01, 0.3, 0.9, 0.999, 1.0],
    "min_p": [0.0, 0.001, 0.1, 1.0],
    "typical_p": [0.05, 0.5, 0.95, 1.0],
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("filters", [(), *((name,) for name in FILTERS), ("top_k", "top_p"), tuple(FILTERS)])
def test_every_rank_draws_what_one_would(size: int, filters: tuple[str, ...]) -> None:
    chosen = {name: [FILTERS[name][row % len(FILTERS[name])] for row in range(ROWS)] for name in filters}
    given = params(ROWS, **chosen)
    tokens = {tuple(assert_draws_agree(some_logits(seed), given, size).token_ids.tolist()) for seed in range(4)}
    assert len(tokens) == 4, "these draws depend on nothing"


def test_one_filter_in_one_row_leaves_the_others_alone() -> None:
    for name, values in FILTERS.items():
        given = params(8, **{name: [*([{"top_k": 0.0, "min_p": 0.0}.get(name, 1.0)] * 7), values[1]]})
        assert_draws_agree(some_logits(rows=8), given, 2)


@pytest.mark.parametrize("size", SIZES)
def test_ties_and_masks_across_the_cut(size: int) -> None:
    """Equal logits on several ranks: the lowest id is greedy's, and all of them stay in top-k."""
    logits = torch.zeros(ROWS, 10)
    logits[:, [1, 4, 5, 9]] = 2.0
    assert_draws_agree(logits, params(ROWS, top_k=[1.0] * ROWS), size)
    for choice in on_ranks(size, lambda group: sharded.greedy(part_of(logits, group), group)):
        assert choice.token_ids.tolist() == [1] * ROWS
    for held in range(10):
        only = torch.full((ROWS, 10), -torch.inf)
        only[:, held] = -3.0
        assert assert_draws_agree(only, params(ROWS), size).token_ids.tolist() == [held] * ROWS
        for choice in on_ranks(size, lambda group, only=only: sharded.greedy(part_of(only, group), group)):
            assert choice.token_ids.tolist() == [held] * ROWS


@pytest.mark.parametrize("vocab", [1, 2, 3, 5, 255, 257, 512, 1024, 1025])
def test_padding_is_never_drawn(vocab: int) -> None:
    """Also where whole ranks hold nothing else. Flat logits below zero: what is padded with zeros would win."""
    logits = torch.full((ROWS, vocab), -50.0)
    for size in SIZES:
        assert_draws_agree(logits, params(ROWS), size)
        for choice in on_ranks(size, lambda group: sharded.greedy(part_of(logits, group), group)):
            assert choice.token_ids.tolist() == [0] * ROWS


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, VOCAB - 1])
def test_a_number_that_is_none_fails_on_every_rank(broken: float, at: int) -> None:
    logits = some_logits(rows=6)
    logits[3, at] = broken
    logits[4] = -torch.inf
    given = params(6, top_k=[3.0] * 6, top_p=[0.5] * 6, min_p=[0.1] * 6, typical_p=[0.5] * 6)
    for choices in (
        on_ranks(2, lambda group: sharded.draw(part_of(logits, group), given, group)),
        on_ranks(2, lambda group: sharded.greedy(part_of(logits, group), group)),
    ):
        for choice in choices:
            assert choice.valid.tolist() == [True, True, True, False, False, True]
            assert choice.token_ids.tolist() == choices[0].token_ids.tolist()
            assert 0 <= int(choice.token_ids.min()) <= int(choice.token_ids.max()) < VOCAB
    named = torch.zeros(6, 1, dtype=torch.int64)
    for scores in on_ranks(2, lambda group: sharded.score(part_of(logits, group), named, 2, group)):
        assert scores.normalizer.isfinite().tolist() == [True, True, True, False, False, True]


@pytest.mark.parametrize("size", SIZES)
def test_scores(size: int) -> None:
    logits = some_logits(rows=5).round(decimals=1)
    logits[:, -3:] = 20.0
    named = torch.tensor([[0, VOCAB - 1, 515, 516], [1, 2, 3, 4]] * 2 + [[1030, 1029, 1028, 1027]])
    whole = WholeVocabulary(VOCAB, reference_backend()).score(logits, named, 6)
    for scores in on_ranks(size, lambda group: sharded.score(part_of(logits, group), named, 6, group)):
        torch.testing.assert_close(scores.normalizer, whole.normalizer, atol=1e-6, rtol=1e-6)
        assert torch.equal(scores.values, whole.values)
        assert torch.equal(scores.ranks, whole.ranks)
        assert torch.equal(scores.top_values, whole.top_values)
        assert scores.top_ids[:, :3].tolist() == [[1028, 1029, 1030]] * 5


@pytest.mark.parametrize("size", SIZES)
def test_more_likeliest_tokens_than_a_rank_holds(size: int) -> None:
    logits, named = some_logits(rows=3, vocab=7), torch.zeros(3, 1, dtype=torch.int64)

    def score(group: TensorParallelGroup) -> RowScores:
        return vocabulary(7, group).score(part_of(logits, group), named, 20)

    order = logits.argsort(dim=-1, descending=True)
    for scores in on_ranks(size, score):
        assert torch.equal(scores.top_ids, order)


@pytest.mark.parametrize("size", SIZES)
def test_a_token_is_at_one_rank(size: int) -> None:
    ids = np.arange(VOCAB)

    def find(group: TensorParallelGroup) -> tuple[list[int], list[int]]:
        columns, here = vocabulary(VOCAB, group).local_ids(ids)
        assert here is not None
        local = part_of(torch.arange(VOCAB, dtype=torch.float32)[None], group)
        assert local[0, columns[here]].tolist() == ids[here].tolist()
        return ids[here].tolist(), columns[here].tolist()

    found = [token_id for tokens, _ in on_ranks(size, find) for token_id in tokens]
    assert found == ids.tolist()


def test_little_is_exchanged() -> None:
    """Bytes each rank gives: of a row that draws, its maximum, mass and answer; of a filter, its candidates."""
    vocab = 32_768
    logits = some_logits(rows=4, vocab=vocab) * 2

    def sent(given: DrawParams) -> int:
        def work(group: TensorParallelGroup) -> int:
            sharded.draw(part_of(logits, group), given, group)
            return bytes_sent(group)

        return max(on_ranks(2, work))

    plain = 4 * 3 * 8
    assert sent(params(4)) == plain
    assert sent(params(4, top_k=[50.0] * 4)) == plain + 4 * 50 * 4
    whole = 4 * vocab // 2 * 4
    assert sent(params(4, top_p=[0.9] * 4)) < plain + whole // 3
    assert sent(params(4, top_p=[0.9] * 4, top_k=[50.0] * 4)) < plain + 4 * 50 * 4 * 3
    assert sent(params(4, typical_p=[0.9, 1.0, 1.0, 1.0])) == plain + whole // 4

    def greedy(group: TensorParallelGroup) -> int:
        sharded.greedy(part_of(logits, group), group)
        return bytes_sent(group)

    assert on_ranks(2, greedy) == [4 * 2 * 8] * 2


def test_the_mass_of_a_rank_that_is_masked_is_never_hit() -> None:
    """Draws at both ends of the range, where rounding would lead out of the only rank with weight."""
    logits = torch.full((ROWS, 12), -torch.inf)
    logits[:, 4:8] = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(3))
    weights = reference.filtered_weights(logits.clone(), params(ROWS))[:, :12]
    for edge in (2.0**-49, 1 - 2.0**-49):
        draws = torch.full((ROWS,), edge, dtype=torch.float64)

        def invert(group: TensorParallelGroup, draws: Tensor = draws) -> Tensor:
            local = weights[:, group.rank * 4 : group.rank * 4 + 4]
            return sharded.invert(torch.nn.functional.pad(local, (0, 252)), draws, 4, group)

        for tokens in on_ranks(3, invert):
            assert tokens.tolist() == [4 if edge < 0.5 else 7] * ROWS


def test_rows_are_drawn_alike_alone_and_together() -> None:
    logits, given = some_logits(), params(ROWS, top_p=[0.8] * ROWS)
    (together, _) = on_ranks(2, lambda group: sharded.draw(part_of(logits, group), given, group).token_ids)
    for row in (0, 17, ROWS - 1):
        one = dataclasses.replace(given.only((row,)))
        (alone, _) = on_ranks(
            2, lambda group, row=row, one=one: sharded.draw(part_of(logits[row : row + 1], group), one, group).token_ids
        )
        assert alone.tolist() == [int(together[row])]


def columns(rows: int) -> SampleColumns:
    given = params(rows, top_k=[0.0, 20.0] * (rows // 2), top_p=[0.9, 1.0] * (rows // 2))
    return SampleColumns(
        temperature=given.temperature.clone().index_fill_(0, torch.tensor([1, 2]), 0.0),
        seed=given.seed,
        candidate=given.candidate,
        position=given.position,
        top_k=given.top_k,
        top_p=given.top_p,
        min_p=given.min_p,
    )


@pytest.mark.parametrize("edited", [False, True])
def test_rows_by_their_columns(edited: bool) -> None:
    """In the head's own type, where the logits are still as it made them: half the bytes."""
    logits = some_logits(rows=8)
    if not edited:
        logits = logits.bfloat16().float()
    expected = Choice(torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.bool))
    reference.sample_rows(logits.clone(), columns(8), *expected)

    def choose(group: TensorParallelGroup) -> tuple[Choice, int]:
        choice = Choice(torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.bool))
        whole = vocabulary(VOCAB, group, torch.bfloat16)
        whole.sample_rows(part_of(logits, group), columns(8), *choice, edited=edited)
        return choice, bytes_sent(group)

    for choice, sent in on_ranks(3, choose):
        assert choice.token_ids.tolist() == expected.token_ids.tolist()
        assert choice.valid.all()
        assert sent == 8 * -(-VOCAB // 3) * (4 if edited else 2)


class _Prepared:
    """A Shortcut that knows what both ranks have; Triton's interpreter is nothing for threads."""

    def __init__(self, parts: Tensor) -> None:
        self._parts = parts

    def all_reduce(self, x: Tensor) -> bool:
        return False

    def gather(self, x: Tensor) -> Tensor:
        assert x.shape == self._parts.shape[1:]
        return self._parts


def test_triton_draws_from_what_is_gathered() -> None:
    logits, given = some_logits(rows=4, vocab=99), params(4, top_k=[0, 3, 0, 0], typical_p=[1.0, 1.0, 1.0, 0.5])
    backend = Backend(torch.device("cpu"), triton=True)
    parts = torch.nn.functional.pad(logits, (0, 1), value=-torch.inf).view(4, 2, 50).transpose(0, 1).contiguous()
    group = TensorParallelGroup(0, 2, shortcut=_Prepared(parts))
    head = VocabParallelHead(pack_weight(torch.zeros(50, 2), reference_backend()), 99, group)
    made = make_vocabulary(head, backend)
    drawn = made.draw(parts[0].clone(), given)
    assert drawn.token_ids.tolist() == WholeVocabulary(99, backend).draw(logits.clone(), given).token_ids.tolist()
    choice = Choice(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool))
    made.sample_rows(parts[0].clone(), columns(4), *choice, edited=False)
    expected = Choice(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool))
    WholeVocabulary(99, backend).sample_rows(logits.clone(), columns(4), *expected, edited=False)
    assert choice.token_ids.tolist() == expected.token_ids.tolist()
    assert choice.valid.all()


def vocabulary(size: int, group: TensorParallelGroup, dtype: torch.dtype = torch.float32) -> ShardedVocabulary:
    backend = reference_backend()
    weight = pack_weight(torch.zeros(-(-size // group.size), 2, dtype=dtype), backend)
    return ShardedVocabulary(VocabParallelHead(weight, size, group), backend)


def test_large_parts_are_whole_tiles() -> None:
    """Sums within a tile are then what they are on one rank; small vocabularies are cut evenly."""
    for vocab, size, expected in [(128_256, 2, 64_256), (128_256, 8, 16_128), (50_257, 4, 12_800), (31, 2, 16)]:
        part = Part("t", (vocab, 8), Cut.VOCAB_ROWS)
        slices = [rank_slice(part, SPEC, TensorParallelGroup(rank, size)) for rank in range(size)]
        assert {cut.num_rows for cut in slices} == {expected}
        assert [row for cut in slices for row in (cut.rows.start, cut.rows.stop)][-1] == vocab
        assert all(one.rows.stop == other.rows.start for one, other in itertools.pairwise(slices))
    alone = rank_slice(Part("t", (50_257, 8), Cut.VOCAB_ROWS), SPEC, TensorParallelGroup())
    assert alone.num_rows == 50_257
