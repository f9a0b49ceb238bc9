"""What the real engine generates over a tiny model, against transformers and against itself one request at a time."""

import dataclasses
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.checkpoints import reference_logits
from tests.support.local_engine import TINY_LIMITS, VOCAB_SIZE, Answer, LocalEngine, load_tiny_worker, make_request
from tokenwire_service.core.events import Completed, Failed, FailureReason, FinishReason, TokensGenerated
from tokenwire_service.core.params import LogprobsParams, Request, SamplingParams, StoppingParams
from tokenwire_service.runner.worker import Worker
from tokenwire_service.weights.progress import SilentProgress
from tokenwire_service.weights.resolved import ResolvedModel


@pytest.fixture(scope="module")
def oracle(tiny_model: ResolvedModel) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model.model_id, attn_implementation="eager", dtype=torch.float32)


def prompt_of(length: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(3, VOCAB_SIZE) for _ in range(length)]


def test_greedy_tokens_are_transformers(engine: LocalEngine, oracle: PreTrainedModel) -> None:
    prompts = {f"r{length}": prompt_of(length, length) for length in (1, 5, 16, 17, 70)}
    answers = engine.run(*(make_request(name, prompt, 12) for name, prompt in prompts.items()))
    for name, prompt in prompts.items():
        expected = list(prompt)
        for _ in range(12):
            expected.append(int(reference_logits(oracle, torch.tensor(expected))[-1].argmax()))
        assert answers[name].tokens[0] == expected[len(prompt) :]
        assert isinstance(answers[name].end, Completed)
    engine.assert_idle()


def mixed_requests() -> list[Request]:
    """Each asks for something else; seeds differ."""
    samplings = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=1),
        SamplingParams(seed=-5, temperature=0.7, top_p=0.9),
        SamplingParams(seed=2, temperature=1.3, top_k=10),
        SamplingParams(seed=3, min_p=0.05),
        SamplingParams(seed=4, typical_p=0.8),
        SamplingParams(seed=5, repetition_penalty=1.3),
        SamplingParams(temperature=0.0, presence_penalty=1.5, frequency_penalty=0.5),
        SamplingParams(seed=6, context_frequency_penalty=1.0, logit_bias=((5, 2.0), (7, -100.0))),
        SamplingParams(seed=7, allowed_token_ids=(10, 11, 12, 13)),
        SamplingParams(seed=2**64 - 1, top_k=40, top_p=0.8, min_p=0.01, typical_p=0.95),
    ]
    return [
        make_request(
            f"m{number}",
            prompt_of(3 + 11 * number, number),
            16,
            sampling=sampling,
            logprobs=LogprobsParams(2) if number % 3 == 0 else None,
        )
        for number, sampling in enumerate(samplings)
    ]


def test_a_batch_gives_what_each_request_gives_alone(tiny_worker: Worker) -> None:
    requests = mixed_requests()
    together = LocalEngine(tiny_worker).run(*requests)
    for request in requests:
        alone = LocalEngine(tiny_worker, prefix_caching=False).run(request)[request.request_id]
        assert together[request.request_id].tokens == alone.tokens, request.sampling


def test_a_preempted_sequence_goes_on_as_if_nothing_happened(tiny_model: ResolvedModel, tiny_worker: Worker) -> None:
    requests = [dataclasses.replace(r, logprobs=None) for r in mixed_requests()]
    requests = [dataclasses.replace(r, stopping=StoppingParams(max_tokens=40)) for r in requests]
    crowded = _crowded_engine(tiny_model)
    answers = crowded.run(*requests)
    assert crowded.stats.preemptions > 0
    for request in requests:
        alone = LocalEngine(tiny_worker).run(request)[request.request_id]
        assert answers[request.request_id].tokens == alone.tokens
    crowded.assert_idle()


def _crowded_engine(tiny_model: ResolvedModel) -> LocalEngine:
    return LocalEngine(load_tiny_worker(tiny_model, dataclasses.replace(TINY_LIMITS, max_batch_total_tokens=320)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_lower_precision_starts_as_full_precision_does(
    tiny_model: ResolvedModel, engine: LocalEngine, dtype: str
) -> None:
    worker = Worker(tiny_model, dtype, TINY_LIMITS, SilentProgress())
    assert worker.facts.dtype == dtype
    prompts = {f"r{length}": prompt_of(length, length) for length in (1, 17, 70)}
    rough = LocalEngine(worker).run(*(make_request(name, prompt, 8) for name, prompt in prompts.items()))
    exact = engine.run(*(make_request(name, prompt, 1) for name, prompt in prompts.items()))
    for name in prompts:
        assert len(rough[name].tokens[0]) == 8
        assert rough[name].tokens[0][:1] == exact[name].tokens[0]


def test_a_seed_repeats_and_another_does_not(engine: LocalEngine) -> None:
    seeds = {"a": 42, "b": 42, "c": 43}
    answers = engine.run(
        *(make_request(name, [5, 6, 7], 20, sampling=SamplingParams(seed=seed)) for name, seed in seeds.items())
    )
    assert answers["a"].tokens == answers["b"].tokens
    assert answers["a"].tokens != answers["c"].tokens


def test_candidates_differ_and_the_first_is_the_only_one_of_a_single(engine: LocalEngine) -> None:
    prompt, sampling = prompt_of(40, 9), SamplingParams(seed=3)
    several = engine.run(make_request("n", prompt, 12, sampling=sampling, num_candidates=4))["n"]
    single = engine.run(make_request("1", prompt, 12, sampling=sampling))["1"]
    assert sorted(several.tokens) == [0, 1, 2, 3]
    assert len({tuple(tokens) for tokens in several.tokens.values()}) == 4
    assert several.tokens[0] == single.tokens[0]
    assert isinstance(several.end, Completed)
    assert several.end.completion_tokens == 48


def test_logprobs_are_of_the_raw_distribution(engine: LocalEngine, oracle: PreTrainedModel) -> None:
    prompt = prompt_of(9, 1)
    sampling = SamplingParams(seed=1, temperature=1.9, top_k=30, repetition_penalty=1.5)
    wanted = LogprobsParams(top_n=3, token_ids=(4, 50))
    answer = engine.run(make_request("l", prompt, 6, sampling=sampling, logprobs=wanted))["l"]
    expected = reference_logits(oracle, torch.tensor(prompt + answer.tokens[0])).log_softmax(-1)
    for at, (token, told) in enumerate(zip(answer.tokens[0], answer.logprobs[0], strict=True)):
        row = expected[len(prompt) - 1 + at]
        assert told.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert told.rank == int((row > row[token]).sum()) + 1
        assert told.top_token_ids == (*row.topk(3).indices.tolist(), 4, 50)
        assert told.top_logprobs == pytest.approx(row[list(told.top_token_ids)].tolist(), abs=1e-4)
        assert told.top_ranks == (1, 2, 3, *(int((row > row[t]).sum()) + 1 for t in (4, 50)))


def test_prompt_logprobs_cover_chunks_and_come_once(engine: LocalEngine, oracle: PreTrainedModel) -> None:
    prompt = prompt_of(120, 2)  # three chunks of the 48-token budget
    engine.run(make_request("warm", prompt, 2))  # its prefix is cached now
    request = make_request("p", prompt, 3, prompt_logprobs=LogprobsParams(top_n=1), num_candidates=2)
    answer = engine.run(request)["p"]
    expected = reference_logits(oracle, torch.tensor(prompt)).log_softmax(-1)
    assert len(answer.prompt_logprobs) == len(prompt) - 1
    for at, told in enumerate(answer.prompt_logprobs):
        assert told.logprob == pytest.approx(float(expected[at, prompt[at + 1]]), abs=1e-4)
        assert told.top_token_ids == (int(expected[at].argmax()),)


def test_min_tokens_holds_the_end_back(engine: LocalEngine, oracle: PreTrainedModel) -> None:
    prompt = prompt_of(6, 3)
    likeliest = int(reference_logits(oracle, torch.tensor(prompt))[-1].argmax())
    stops = frozenset({likeliest})
    early = engine.run(make_request("e", prompt, stopping=StoppingParams(9, stop_token_ids=stops)))["e"]
    late = engine.run(make_request("l", prompt, stopping=StoppingParams(9, min_tokens=4, stop_token_ids=stops)))["l"]
    assert early.tokens[0] == [likeliest]
    last = [event for event in early.events if isinstance(event, TokensGenerated)][-1]
    assert last.finish is not None
    assert (last.finish.reason, last.finish.stop_token_id) == (FinishReason.STOP, likeliest)
    assert likeliest not in late.tokens[0][:4]
    assert len(late.tokens[0]) >= 4


def test_constraints_that_leave_no_token_fail_that_request_alone(engine: LocalEngine) -> None:
    stopping = StoppingParams(8, min_tokens=2, stop_token_ids=frozenset({9}))
    impossible = SamplingParams(seed=1, allowed_token_ids=(9,))
    answers = engine.run(
        make_request("bad", [4, 5], sampling=impossible, stopping=stopping), make_request("good", [4, 5], 5)
    )
    assert isinstance(answers["bad"].end, Failed)
    assert answers["bad"].end.reason is FailureReason.ENGINE_FAILURE
    assert len(answers["good"].tokens[0]) == 5
    engine.assert_idle()


def test_a_request_too_long_is_refused(engine: LocalEngine) -> None:
    answer: Answer = engine.run(make_request("x", [5] * 100, 4000))["x"]
    assert isinstance(answer.end, Failed)
    assert "exceed" in answer.end.message


def test_tokens_the_model_has_no_row_for_fail_their_request_alone(engine: LocalEngine) -> None:
    beyond = VOCAB_SIZE
    bad = {
        "prompt": make_request("prompt", [5, beyond]),
        "logit_bias": make_request("logit_bias", [5], sampling=SamplingParams(logit_bias=((beyond, 1.0),))),
        "allowed": make_request("allowed", [5], sampling=SamplingParams(allowed_token_ids=(1, beyond))),
        "logprobs": make_request("logprobs", [5], logprobs=LogprobsParams(token_ids=(beyond,))),
        "prompt_logprobs": make_request("prompt_logprobs", [5, 6], prompt_logprobs=LogprobsParams(token_ids=(beyond,))),
    }
    answers = engine.run(make_request("good", [4, 5], 5), *bad.values())
    assert len(answers["good"].tokens[0]) == 5
    for name in bad:
        end = answers[name].end
        assert isinstance(end, Failed), name
        assert f"token id {beyond}; the model's are less than {VOCAB_SIZE}" in end.message
    engine.assert_idle()


def test_end_tokens_the_model_has_no_row_for_are_never_masked(engine: LocalEngine) -> None:
    ends = frozenset({2, VOCAB_SIZE, VOCAB_SIZE + 5000})
    answers = engine.run(
        make_request("a", [4, 5], stopping=StoppingParams(6, min_tokens=6, stop_token_ids=ends)),
        make_request("b", [4, 5], stopping=StoppingParams(6, min_tokens=3, stop_token_ids=ends - {2})),
    )
    assert [len(answers[name].tokens[0]) for name in "ab"] == [6, 6]
