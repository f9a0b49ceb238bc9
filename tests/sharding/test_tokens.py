"""Two and four gloo ranks generate what one rank does, for every family, whatever is asked of them.

Logits differ in their last bits, because sums over ranks are made in another order; a draw or an argmax that falls
between two such sums would differ too. In float32 that is about one draw in 100,000: the seeds below have none.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.checkpoints import random_model, save
from tests.support.gloo_ranks import GlooRanks, gloo_ranks
from tests.support.local_engine import TINY_LIMITS, VOCAB_SIZE, Answer, LocalEngine, make_request, resolved_from
from tokenwire_service.core.events import Completed, TokenLogprob
from tokenwire_service.core.params import LogprobsParams, Request, SamplingParams, StoppingParams
from tokenwire_service.models.families import FAMILIES
from tokenwire_service.runner.executor import Executor
from tokenwire_service.runner.worker import Worker
from tokenwire_service.weights.progress import SilentProgress
from tokenwire_service.weights.resolved import ResolvedModel

CONFIG = dataclasses.replace(TINY_LIMITS, speculate=4)
SHAPE = {"max_position_embeddings": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 20, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 16},
    "qwen2": {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 30, "max_window_layers": 1},
    "qwen3": {"head_dim": 32, "num_key_value_heads": 4, "attention_bias": True},
    "smollm3": {"num_hidden_layers": 4, "tie_word_embeddings": True, "mlp_bias": True},
}
"""A model type of each family, with KV heads repeated, cut, and shared out unevenly. The vocabulary of 97 divides by
neither size."""

SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(seed=1),
    SamplingParams(seed=-5, temperature=0.7, top_p=0.9),
    SamplingParams(seed=2, temperature=1.3, top_k=10),
    SamplingParams(seed=3, min_p=0.05),
    SamplingParams(seed=4, typical_p=0.8),
    SamplingParams(seed=5, repetition_penalty=1.3),
    SamplingParams(temperature=0.0, presence_penalty=1.5, frequency_penalty=0.5),
    SamplingParams(seed=6, context_frequency_penalty=1.0, logit_bias=((5, 2.0), (96, 3.0), (48, -100.0))),
    SamplingParams(seed=7, allowed_token_ids=(10, 11, 49, 96)),
    SamplingParams(temperature=0.0, allowed_token_ids=(90,)),
    SamplingParams(seed=2**64 - 1, top_k=40, top_p=0.8, min_p=0.01, typical_p=0.95),
)


def prompt_of(length: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(3, VOCAB_SIZE) for _ in range(length)]


def mixed() -> list[Request]:
    """Prompts of up to three chunks."""
    requests = [
        make_request(
            f"m{number}",
            prompt_of(3 + 11 * number, number),
            sampling=sampling,
            stopping=StoppingParams(max_tokens=8, min_tokens=4, stop_token_ids=frozenset((2, 60, 96))),
            logprobs=LogprobsParams(3, (0, 50, 96)) if number % 3 == 0 else None,
            num_candidates=3 if number in (1, 3) else 1,
        )
        for number, sampling in enumerate(SAMPLINGS)
    ]
    scored = make_request("scored", prompt_of(70, 50), 3, prompt_logprobs=LogprobsParams(2, (1, 95)))
    return [*requests, scored]


def generate(worker: Worker, executor: Executor | None = None) -> dict[str, Answer]:
    """Everything at once, then the same prompts from the prefix cache, some of them ended early, then chunks that go
    through a few layers a step, then guesses."""
    engine = LocalEngine(worker, executor)
    answers = engine.run(*mixed())
    again = [dataclasses.replace(request, request_id=f"again-{request.request_id}") for request in mixed()[3:]]
    long = make_request("cancelled", prompt_of(40, 60), 60, sampling=SamplingParams(seed=9))
    engine.say(submissions=(long, *again))
    for _ in range(5):
        engine.step()
    engine.say(closed=("cancelled", again[0].request_id))
    answers |= engine.run(make_request("after", prompt_of(20, 61), 8, sampling=SamplingParams(seed=10)))
    answers |= {request.request_id: engine.answer(request.request_id) for request in (long, *again)}
    assert engine.stats.prefix_hit_tokens > 100
    engine.assert_idle()
    layered = LocalEngine(worker, executor, max_decode_slowdown=1.1, num_layers=worker.num_layers_apart)
    beside = make_request("beside", prompt_of(5, 62), 60)
    long = make_request("layered", prompt_of(150, 63), 6, sampling=SamplingParams(seed=12))
    answers |= layered.run(beside, long)
    assert any(span.completes for span in layered.spans)
    layered.assert_idle()
    phrase = prompt_of(9, 70)
    guesses = LocalEngine(worker, executor, num_draft_tokens=4)
    only = SamplingParams(seed=11, temperature=0.3, allowed_token_ids=(10, 96))
    repeating = [
        make_request("guessed", phrase * 3, 24),
        make_request("guessed-drawn", phrase * 3, 24, sampling=only),
    ]
    answers |= guesses.run(*repeating)
    assert guesses.stats.accepted_draft_tokens > 3
    guesses.assert_idle()
    return answers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResolvedModel]:
    found = {}
    for name, variant in VARIANTS.items():
        directory = tmp_path_factory.mktemp(name)
        found[name] = resolved_from(directory, save(random_model(name, **{**SHAPE, **variant}), directory))
    return found


@pytest.fixture(scope="module")
def alone(models: dict[str, ResolvedModel]) -> dict[str, dict[str, Answer]]:
    """What one rank says."""
    torch.set_num_threads(1)
    return {name: generate(Worker(resolved, "float32", CONFIG, SilentProgress())) for name, resolved in models.items()}


@pytest.fixture(scope="module", params=[(2, False), (4, False), (2, True)], ids=["two", "four", "two-sharing-memory"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlooRanks]:
    size, share_memory = request.param
    with gloo_ranks(size, tmp_path_factory.mktemp("ranks"), share_memory=share_memory) as made:
        yield made


def test_every_family_is_here(models: dict[str, ResolvedModel]) -> None:
    assert {resolved.config["architectures"][0] for resolved in models.values()} == FAMILIES.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_ranks_generate_what_one_does(
    name: str, ranks: GlooRanks, models: dict[str, ResolvedModel], alone: dict[str, dict[str, Answer]]
) -> None:
    with ranks.load(models[name], CONFIG) as executor:
        found = generate(executor.worker, executor)
    expected = alone[name]
    assert found.keys() == expected.keys()
    for request_id, answer in found.items():
        assert answer.tokens == expected[request_id].tokens, request_id
        assert type(answer.end) is type(expected[request_id].end)
        for index, logprobs in expected[request_id].logprobs.items():
            assert_scores_agree(answer.logprobs[index], logprobs)
        assert_scores_agree(answer.prompt_logprobs, expected[request_id].prompt_logprobs)


def assert_scores_agree(found: list[TokenLogprob], expected: list[TokenLogprob]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.rank, one.top_token_ids, one.top_ranks) == (other.rank, other.top_token_ids, other.top_ranks)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.top_logprobs == pytest.approx(other.top_logprobs, abs=1e-4)


def test_what_is_compared_says_something(alone: dict[str, dict[str, Answer]]) -> None:
    """Lengths, ends and scores of the answers that the ranks' are held against."""
    for answers in alone.values():
        assert len(answers["scored"].prompt_logprobs) == 69
        assert len(answers["m3"].tokens) == 3
        assert len({tuple(tokens) for tokens in answers["m3"].tokens.values()}) == 3
        assert len(answers["m0"].logprobs[0]) == len(answers["m0"].tokens[0]) >= 4
        assert 1 <= len(answers["cancelled"].tokens[0]) < 60
        assert not isinstance(answers["cancelled"].end, Completed)
        assert isinstance(answers["again-m5"].end, Completed)
