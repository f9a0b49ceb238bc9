"""The real engine with and without guesses: the same tokens, fewer steps."""

from __future__ import annotations

import random

import pytest

from tests.support.local_engine import VOCAB_SIZE, LocalEngine, make_request
from tokenwire_service.core.events import Completed, FinishReason, TokensGenerated
from tokenwire_service.core.params import LogprobsParams, Request, SamplingParams, StoppingParams
from tokenwire_service.runner.worker import Worker

SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(seed=1, temperature=0.7, top_k=3),
    SamplingParams(seed=2, allowed_token_ids=(10, 11)),
    SamplingParams(seed=-3, temperature=0.05, top_p=0.9, min_p=0.01, logit_bias=((7, 1.0),)),
)
"""All of which repeat themselves."""


def requests(**fields: object) -> list[Request]:
    generator = random.Random(1)
    made = []
    for number, sampling in enumerate(SAMPLINGS):
        phrase = [generator.randrange(3, VOCAB_SIZE) for _ in range(9)]
        made.append(make_request(f"r{number}", phrase * 3 + phrase[:4], 60, sampling=sampling, **fields))
    return made


@pytest.mark.parametrize("max_steps_in_flight", [1, 2])
@pytest.mark.parametrize("num_draft_tokens", [1, 4, 7])
def test_tokens_are_those_without_guesses(num_draft_tokens: int, max_steps_in_flight: int, tiny_worker: Worker) -> None:
    plain = LocalEngine(tiny_worker).run(*requests())
    engine = LocalEngine(
        tiny_worker, num_draft_tokens=num_draft_tokens, max_steps_in_flight=max_steps_in_flight, prefix_caching=False
    )
    answers = engine.run(*requests())
    assert {name: answer.tokens for name, answer in answers.items()} == {
        name: answer.tokens for name, answer in plain.items()
    }
    engine.assert_idle()
    assert 20 < engine.stats.accepted_draft_tokens < engine.stats.draft_tokens
    ends = [answer.end for answer in answers.values()]
    counts = [(end.draft_tokens, end.accepted_draft_tokens) for end in ends if isinstance(end, Completed)]
    assert len(counts) == len(ends)
    assert tuple(map(sum, zip(*counts, strict=True))) == (engine.stats.draft_tokens, engine.stats.accepted_draft_tokens)


def test_a_text_that_goes_round_takes_few_steps(tiny_worker: Worker) -> None:
    only = SamplingParams(seed=3, allowed_token_ids=(10,))
    steps = []
    for num_draft_tokens in (0, 4):
        engine = LocalEngine(tiny_worker, num_draft_tokens=num_draft_tokens)
        answer = engine.run(make_request("a", [10, 10, 10], 100, sampling=only))["a"]
        assert answer.tokens[0] == [10] * 100
        steps.append(engine.stats.num_steps)
    assert steps[0] == 100
    assert steps[1] <= 25


def test_a_stop_token_within_a_draft_ends_the_text(tiny_worker: Worker) -> None:
    stopping = StoppingParams(max_tokens=60, stop_token_ids=frozenset({11}))
    prompt = [10, 11, 10, 10, 11, 10, 10, 10]
    endings = set()
    for seed in range(8):
        sampling = SamplingParams(seed=seed, allowed_token_ids=(10, 11), logit_bias=((10, 2.0),))
        answers = []
        for num_draft_tokens in (0, 4):
            engine = LocalEngine(tiny_worker, num_draft_tokens=num_draft_tokens)
            request = make_request("a", prompt, sampling=sampling, stopping=stopping)
            answers.append(engine.run(request)["a"])
            engine.assert_idle()
        plain, drafted = answers
        assert drafted.tokens == plain.tokens
        last, plain_last = (
            next(event for event in answer.events if isinstance(event, TokensGenerated) and event.finish)
            for answer in (drafted, plain)
        )
        assert last.finish == plain_last.finish
        if last.finish is not None and last.finish.reason is FinishReason.STOP:
            endings.add(len(last.token_ids))
    assert max(endings) > 1, "no stop came within a draft"


def test_log_probabilities_are_told_for_each_token_with_speculation_on(tiny_worker: Worker) -> None:
    engine = LocalEngine(tiny_worker, num_draft_tokens=4)
    for answer in engine.run(*requests(logprobs=LogprobsParams(2))).values():
        assert len(answer.logprobs[0]) == len(answer.tokens[0]) == 60
    assert engine.stats.draft_tokens == 0
