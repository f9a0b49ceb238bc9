"""The sampling op against transformers' logits processors, plain transcriptions of the definitions, and statistics."""

import dataclasses
import itertools

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tokenwire_service.kernels import sample
from tokenwire_service.kernels.sample import reference
from tokenwire_service.kernels.sample.params import DrawParams, LogitEdits, Penalties, TokenBias, TokenMask


def draw_params(rows: int, **values: list[float]) -> DrawParams:
    """Parameters where only the named ones are on; lists of `rows` values."""
    get = lambda name, default: values.get(name, [default] * rows)  # noqa: E731
    return DrawParams(
        temperature=torch.tensor(get("temperature", 1.0), dtype=torch.float32),
        seed=torch.tensor(get("seed", 11)),
        candidate=torch.tensor(get("candidate", 0)),
        position=torch.tensor(get("position", 0)),
        top_k=torch.tensor(get("top_k", 0)),
        top_p=torch.tensor(get("top_p", 1.0), dtype=torch.float32),
        min_p=torch.tensor(get("min_p", 0.0), dtype=torch.float32),
        typical_p=torch.tensor(get("typical_p", 1.0), dtype=torch.float32),
        top_k_rows=tuple(i for i, k in enumerate(get("top_k", 0)) if k),
        top_p_rows=tuple(i for i, p in enumerate(get("top_p", 1.0)) if p < 1),
        min_p_rows=tuple(i for i, p in enumerate(get("min_p", 0.0)) if p),
        typical_rows=tuple(i for i, p in enumerate(get("typical_p", 1.0)) if p < 1),
    )


def kept_tokens(logits: torch.Tensor, params: DrawParams) -> list[set[int]]:
    """Tokens of positive weight after the filters, per row."""
    weights = reference.filtered_weights(logits.clone(), params)
    return [set(row.nonzero().flatten().tolist()) for row in weights]


FILTERS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 5000},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"typical_p": 0.6},
    {"typical_p": 0.95},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.8},
    {"temperature": 1.8, "top_k": 400, "typical_p": 0.9, "top_p": 0.95, "min_p": 0.02},
]


def transformers_filters(values: dict[str, float]) -> LogitsProcessorList:
    warpers: list[object] = []
    if "temperature" in values:
        warpers.append(TemperatureLogitsWarper(values["temperature"]))
    if "top_k" in values:
        warpers.append(TopKLogitsWarper(int(values["top_k"])))
    if "typical_p" in values:
        warpers.append(TypicalLogitsWarper(values["typical_p"]))
    if "top_p" in values:
        warpers.append(TopPLogitsWarper(values["top_p"]))
    if "min_p" in values:
        warpers.append(MinPLogitsWarper(values["min_p"]))
    return LogitsProcessorList(warpers)


@pytest.mark.parametrize("values", FILTERS, ids=str)
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
def test_filters_keep_what_transformers_keeps(values: dict[str, float], scale: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 1500) * scale
    expected = transformers_filters(values)(torch.zeros(6, 1, dtype=torch.int64), logits.clone())
    params = draw_params(6, **{name: [value] * 6 for name, value in values.items()})
    kept = kept_tokens(logits, params)
    for row in range(6):
        # Tokens whose exp() underflows are neither kept nor dropped.
        loud = set((expected[row] - expected[row].max() > -85).nonzero().flatten().tolist())
        quiet = set(
            (logits[row] / values.get("temperature", 1.0)).sub(expected[row].max()).lt(-85).nonzero().flatten().tolist()
        )
        difference = (kept[row] - quiet) ^ loud
        assert len(difference) <= (1 if "typical_p" in values or values.get("top_p", 0) > 0.99 else 0), difference


@pytest.mark.parametrize("vocab", [900, 49152])
def test_a_row_does_not_depend_on_its_neighbours(vocab: int) -> None:
    torch.manual_seed(1)
    logits = torch.randn(len(FILTERS) + 1, vocab) * 4
    columns: dict[str, list[float]] = {
        name: [row.get(name, default) for row in [*FILTERS, {}]]
        for name, default in {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}.items()
    }
    together = reference.filtered_weights(logits.clone(), draw_params(len(logits), **columns))
    chosen = sample.draw(logits.clone(), draw_params(len(logits), **columns))
    for row in range(len(logits)):
        params = draw_params(1, **{name: [values[row]] for name, values in columns.items()})
        alone = reference.filtered_weights(logits[row : row + 1].clone(), params)
        assert torch.equal(alone[0], together[row])
        assert int(sample.draw(logits[row : row + 1].clone(), params).token_ids) == int(chosen.token_ids[row])


def test_repetition_penalty_matches_transformers() -> None:
    torch.manual_seed(2)
    logits = torch.randn(3, 50)
    seen = torch.randint(0, 50, (3, 12))
    expected = torch.stack(
        [
            RepetitionPenaltyLogitsProcessor(p)(seen[i : i + 1], logits[i : i + 1].clone())[0]
            for i, p in enumerate((1.0, 1.7, 0.6))
        ]
    )
    actual = logits.clone()
    sample.edit_logits(actual, LogitEdits(penalties=penalties(seen.tolist(), [[]] * 3, repetition=[1.0, 1.7, 0.6])))
    assert torch.allclose(actual, expected)


def penalties(prompts: list[list[int]], generated: list[list[int]], **strengths: list[float]) -> Penalties:
    entries = [
        (row, token, out.count(token), prompt.count(token) + out.count(token))
        for row, (prompt, out) in enumerate(zip(prompts, generated, strict=True))
        for token in sorted({*prompt, *out})
    ]
    rows, tokens, generated_counts, total_counts = (torch.tensor(column) for column in zip(*entries, strict=True))
    count = len(prompts)
    defaults = {"repetition": 1.0, "presence": 0.0, "frequency": 0.0, "context_frequency": 0.0}
    return Penalties(
        rows,
        tokens,
        generated_counts.float(),
        total_counts.float(),
        torch.tensor([float(len(p) + len(g)) for p, g in zip(prompts, generated, strict=True)]),
        **{name: torch.tensor(strengths.get(name, [default] * count)) for name, default in defaults.items()},
    )


def edited_by_definition(
    logits: list[float],
    prompt: list[int],
    generated: list[int],
    strengths: dict[str, float],
    bias: dict[int, float],
    allowed: list[int],
    forbidden: list[int],
) -> list[float]:
    result = list(logits)
    everything = prompt + generated
    for token in range(len(result)):
        if token in everything:
            value, penalty = result[token], strengths["repetition"]
            result[token] = value / penalty if value > 0 else value * penalty
        result[token] -= strengths["frequency"] * generated.count(token)
        result[token] -= strengths["presence"] * (token in generated)
        result[token] -= strengths["context_frequency"] * everything.count(token) / len(everything)
        result[token] += bias.get(token, 0.0)
        if (allowed and token not in allowed) or token in forbidden:
            result[token] = -float("inf")
    return result


def test_edits_match_their_definition() -> None:
    generator = torch.Generator().manual_seed(3)
    rows, vocab = 5, 40
    logits = torch.randn(rows, vocab, generator=generator) * 3
    prompts = [torch.randint(0, vocab, (9,), generator=generator).tolist() for _ in range(rows)]
    generated = [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in (0, 1, 4, 8, 16)]
    strengths = {
        "repetition": [1.0, 1.3, 0.8, 1.1, 2.0],
        "presence": [0.0, 0.5, -0.5, 2.0, 0.1],
        "frequency": [0.0, 0.25, 1.0, -2.0, 0.3],
        "context_frequency": [0.0, 0.7, -1.0, 2.0, 0.0],
    }
    bias: list[dict[int, float]] = [{}, {3: 5.0}, {1: -100.0, 7: 2.5}, {}, {0: 1.0}]
    allowed: list[list[int]] = [[], [], [1, 2, 7], [4], []]
    forbidden: list[list[int]] = [[], [0, 9], [2], [], [39]]
    actual = logits.clone()
    sample.edit_logits(
        actual,
        LogitEdits(
            penalties(prompts, generated, **strengths),
            TokenBias(*pairs([list(b) for b in bias]), torch.tensor([v for b in bias for v in b.values()])),
            TokenMask(*pairs(allowed)),
            TokenMask(*pairs(forbidden)),
        ),
    )
    for row in range(rows):
        expected = edited_by_definition(
            logits[row].tolist(), prompts[row], generated[row], {k: v[row] for k, v in strengths.items()},
            bias[row], allowed[row], forbidden[row],
        )  # fmt: skip
        assert torch.allclose(actual[row], torch.tensor(expected), atol=1e-5), row


def pairs(lists: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.tensor([row for row, tokens in enumerate(lists) for _ in tokens]),
        torch.tensor(list(itertools.chain.from_iterable(lists))),
    )


def test_greedy_takes_the_lowest_id_on_ties() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    assert sample.greedy(logits).token_ids.tolist() == [1, 0]


@pytest.mark.parametrize("vocab", [7, 257, 512, 48 * 5])
def test_greedy_is_argmax(vocab: int) -> None:
    torch.manual_seed(9)
    logits = torch.randint(0, 40, (50, vocab)).float()
    logits[3, vocab // 2] = torch.nan
    logits[4] = -torch.inf
    assert torch.equal(sample.greedy(logits).token_ids, logits.argmax(dim=-1))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_row_is_told_and_others_are_not(poison: float) -> None:
    torch.manual_seed(4)
    logits = torch.randn(3, 700)
    logits[1, 650] = poison
    assert sample.greedy(logits).valid.tolist() == [True, False, True]
    assert sample.draw(logits.clone(), draw_params(3)).valid.tolist() == [True, False, True]
    every = draw_params(3, top_k=[5] * 3, top_p=[0.9] * 3, min_p=[0.1] * 3, typical_p=[0.9] * 3)
    assert sample.draw(logits.clone(), every).valid.tolist() == [True, False, True]


def test_a_row_with_nothing_left_is_invalid() -> None:
    logits = torch.full((1, 10), -torch.inf)
    assert not sample.greedy(logits).valid.any()
    assert not sample.draw(logits, draw_params(1)).valid.any()


@pytest.mark.parametrize("vocab", [5, 256, 700])
def test_draws_follow_the_distribution(vocab: int) -> None:
    torch.manual_seed(5)
    logits = torch.randn(vocab) * 1.5
    count = 60_000
    params = draw_params(count)
    params = dataclasses.replace(params, position=torch.arange(count), temperature=torch.full((count,), 0.8))
    tokens = torch.cat(
        [
            sample.draw(logits.expand(n, -1).clone(), slice_params(params, at, at + n)).token_ids
            for at, n in ((start, min(4000, count - start)) for start in range(0, count, 4000))
        ]
    )
    expected = (logits / 0.8).softmax(-1).double() * count
    common = expected >= 8
    observed = torch.bincount(tokens, minlength=vocab).double()
    parts = ((observed - expected) ** 2 / expected)[common]
    freedom = int(common.sum()) - 1
    assert float(parts.sum()) < freedom + 4 * (2 * freedom) ** 0.5


def slice_params(params: DrawParams, start: int, end: int) -> DrawParams:
    tensors = {
        field.name: getattr(params, field.name)[start:end]
        for field in dataclasses.fields(params)
        if isinstance(getattr(params, field.name), torch.Tensor)
    }
    return dataclasses.replace(params, **tensors)


def test_draws_never_take_a_token_of_no_weight() -> None:
    weights = torch.zeros(1000, 768)
    weights[:, 300] = 1e-30
    weights[:, 511] = 1.0
    weights[:, 512] = 1e-3
    draws = torch.linspace(1e-12, 1 - 2.0**-49, 1000, dtype=torch.float64)
    assert set(reference._invert(weights, draws).tolist()) <= {300, 511, 512}


def test_tiny_temperature_is_greedy() -> None:
    torch.manual_seed(6)
    logits = torch.randn(8, 300) * 10
    chosen = sample.draw(logits.clone(), draw_params(8, temperature=[1e-38] * 8))
    assert chosen.token_ids.tolist() == logits.argmax(-1).tolist()
    assert chosen.valid.all()


def test_log_probabilities_and_ranks() -> None:
    torch.manual_seed(7)
    logits = torch.randn(4, 100)
    tokens = torch.tensor([[3, 5], [0, 99], [7, 7], [50, 51]])
    values = logits.gather(-1, tokens)
    expected = logits.log_softmax(-1).gather(-1, tokens)
    assert torch.allclose(values - sample.log_normalizer(logits).unsqueeze(-1), expected, atol=1e-6)
    order = logits.argsort(dim=-1, descending=True).argsort(dim=-1)
    assert sample.ranks(logits, values).tolist() == (order.gather(-1, tokens) + 1).tolist()


def test_rounding_never_leads_to_a_masked_token() -> None:
    """Above every tile's exact sum, which the rounded one may exceed, only tokens of no weight are left."""
    torch.manual_seed(8)
    logits = torch.randn(500, 256)
    logits[:, 200:] = -torch.inf
    weights = reference.filtered_weights(logits, draw_params(500))
    draws = torch.full((500,), 1 - 2.0**-49, dtype=torch.float64)
    assert int(reference._invert(weights, draws).max()) < 200
