"""Recorded decode steps give what steps give that are not recorded."""

import random
from collections.abc import Callable, Hashable
from dataclasses import replace

import pytest
import torch

from tests.support.bare_worker import BARE_SIZES, BareWorker, CallRecorder
from tests.support.local_engine import VOCAB_SIZE, LocalEngine, make_request
from tokenwire_service.core.params import LogprobsParams, Request, SamplingParams
from tokenwire_service.kernels.backend import Backend, reference_backend
from tokenwire_service.kernels.graph import Graph
from tokenwire_service.runner.step_graphs import BucketGraphs, LazyGraphs, bucket_sizes
from tokenwire_service.runner.worker import Worker
from tokenwire_service.weights.resolved import ResolvedModel

CPU = torch.device("cpu")


def requests(num: int, max_tokens: int = 30) -> list[Request]:
    """Half of them want nothing that the columns on the device do not say."""
    generator = random.Random(num)
    samplings = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=1),
        SamplingParams(seed=2**64 - 7, temperature=0.7, top_p=0.9),
        SamplingParams(seed=-3, temperature=1.3, top_k=10, min_p=0.02),
        SamplingParams(seed=3, typical_p=0.8),
        SamplingParams(temperature=0.0, repetition_penalty=1.4),
        SamplingParams(seed=4, logit_bias=((5, 4.0),)),
    ]
    return [
        make_request(
            f"r{number}",
            [generator.randrange(3, VOCAB_SIZE) for _ in range(generator.randrange(1, 40))],
            generator.randrange(2, max_tokens),
            sampling=samplings[number % len(samplings)],
            logprobs=LogprobsParams(1) if number % 9 == 8 else None,
        )
        for number in range(num)
    ]


@pytest.mark.parametrize("steps", [1, 2])
def test_padded_steps_draw_the_same_tokens(tiny_model: ResolvedModel, steps: int) -> None:
    plain = LocalEngine(BareWorker(tiny_model, reference_backend()))
    recorder = CallRecorder()
    graphs = BucketGraphs(recorder, (1, 3, 16))
    padded = LocalEngine(BareWorker(tiny_model, reference_backend(), graphs), max_steps_in_flight=steps)
    assert recorder.num_recorded == 6
    expected, answers = plain.run(*requests(14)), padded.run(*requests(14))
    assert {name: answer.tokens for name, answer in answers.items()} == {
        name: answer.tokens for name, answer in expected.items()
    }
    assert recorder.num_recorded == 6
    assert recorder.num_replays > 20


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning:triton.*")
def test_triton_kernels_under_the_interpreter_step_as_the_references_do(tiny_model: ResolvedModel) -> None:
    """The very step a GPU replays: padded rows, tokens drawn and appended on the device, two steps in flight."""
    samplings = [SamplingParams(temperature=0.0), SamplingParams(seed=2**64 - 7, top_p=0.9), SamplingParams(seed=3)]
    few = [make_request(f"r{at}", [9 + at, 5, 7][: at + 1], 3, sampling=s) for at, s in enumerate(samplings)]
    expected = LocalEngine(BareWorker(tiny_model, reference_backend())).run(*few)
    sizes = replace(BARE_SIZES, max_num_sequences=4, max_total_tokens=16)
    worker = BareWorker(tiny_model, Backend(CPU, triton=True), BucketGraphs(CallRecorder(), (4,)), sizes)
    answers = LocalEngine(worker, max_steps_in_flight=2).run(*few)
    for request in few:
        assert answers[request.request_id].tokens == expected[request.request_id].tokens, request.sampling


def test_exact_steps_are_recorded_once_for_each_size(tiny_model: ResolvedModel) -> None:
    recorder = CallRecorder()
    worker = BareWorker(tiny_model, reference_backend(), LazyGraphs(recorder))
    expected = LocalEngine(BareWorker(tiny_model, reference_backend())).run(*requests(10))
    recorded = set()
    for _ in range(2):
        answers = LocalEngine(worker).run(*requests(10))
        assert all(answers[name].tokens == expected[name].tokens for name in expected)
        recorded.add(recorder.num_recorded)
    assert len(recorded) == 1
    assert 1 < recorder.num_recorded <= 10


class KeptKeys(LazyGraphs):
    def __init__(self) -> None:
        super().__init__(CallRecorder())
        self.keys: set[Hashable] = set()

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        self.keys.add(key)
        super().run(key, work)


def test_small_parts_of_a_prompt_beside_decodes_are_recorded_too(tiny_model: ResolvedModel) -> None:
    asked = [make_request("decoding", [5, 6], 60), make_request("long", [7 + i % 80 for i in range(150)], 4)]
    expected = {
        request.request_id: LocalEngine(BareWorker(tiny_model, reference_backend())).run(request) for request in asked
    }
    graphs = KeptKeys()
    engine = LocalEngine(BareWorker(tiny_model, reference_backend(), graphs), max_decode_slowdown=1.5)
    engine.step(submissions=asked[:1])
    engine.step()
    answers = engine.run(asked[1])
    assert engine.answer("decoding").tokens == expected["decoding"]["decoding"].tokens
    assert answers["long"].tokens == expected["long"]["long"].tokens
    assert ("small", (9, 2)) in graphs.keys, "the first eight of the prompt"


def test_the_real_recorder_serves_the_native_kernels(tiny_worker: Worker, tiny_model: ResolvedModel) -> None:
    """Where there is a compiler: the real worker's decode steps are recorded, and draw what the references do."""
    expected = LocalEngine(BareWorker(tiny_model, reference_backend())).run(*requests(10))
    for _ in range(2):
        answers = LocalEngine(tiny_worker).run(*requests(10))
        assert all(answers[name].tokens == expected[name].tokens for name in expected)


class Refusing(CallRecorder):
    def record(self, work: object) -> Graph:
        self.num_recorded += 1
        raise ValueError("no native kernel")


def test_what_cannot_be_recorded_runs_as_it_is(tiny_model: ResolvedModel) -> None:
    recorder = Refusing()
    engine = LocalEngine(BareWorker(tiny_model, reference_backend(), LazyGraphs(recorder)))
    assert len(engine.run(make_request("a", [5, 6], 6))["a"].tokens[0]) == 6
    assert recorder.num_recorded == 1


def test_the_recording_longest_unused_goes() -> None:
    recorder = CallRecorder()
    graphs = LazyGraphs(recorder, max_graphs=2)
    done: list[int] = []
    for key in (1, 2, 1, 3, 1, 2):
        graphs.run(key, lambda key=key: done.append(key))  # type: ignore[misc]
    assert recorder.num_recorded == 4  # 2 went when 3 came
    assert set(done) == {1, 2, 3}


def test_buckets_hold_every_batch() -> None:
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(20) == (1, 2, 4, 8, 16, 24)
    assert bucket_sizes(300)[-3:] == (256, 288, 320)
    assert all(bucket_sizes(rows)[-1] >= rows for rows in range(1, 600))


def test_timing_tells_device_and_gap(tiny_model: ResolvedModel) -> None:
    worker = BareWorker(tiny_model, reference_backend())
    assert worker.runner.last_timing is None
    LocalEngine(worker).run(make_request("a", [5, 6], 3))
    timing = worker.runner.last_timing
    assert timing is not None
    assert timing.device_s > 0
    assert timing.host_s > 0
    assert timing.gap_s > 0
    assert BARE_SIZES.max_num_sequences == worker.sizes.max_num_sequences
