"""Rows with guesses at their next tokens draw the tokens that steps without guesses draw."""

import random
from dataclasses import replace

import pytest
import torch

from tests.support.bare_worker import BARE_SIZES, BareWorker, CallRecorder
from tests.support.local_engine import VOCAB_SIZE, LocalEngine, make_request
from tokenwire_service.core.params import Request, SamplingParams, StoppingParams
from tokenwire_service.kernels.backend import Backend, reference_backend
from tokenwire_service.runner.executor import LocalExecutor, PendingStep
from tokenwire_service.runner.small_step import SpeculationLimits
from tokenwire_service.runner.step_graphs import BucketGraphs, LazyGraphs
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import ScheduledSlot, SchedulerOutput, SlotJoin, SlotResult
from tokenwire_service.weights.resolved import ResolvedModel

CPU = torch.device("cpu")
SAMPLINGS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.3, seed=5),
    SamplingParams(temperature=0.8, seed=2**63 + 1, top_p=0.9),
    SamplingParams(temperature=0.5, top_k=8, min_p=0.1, seed=9, logit_bias=((6, 2.0),)),
]


def repetitive_requests() -> list[Request]:
    generator = random.Random(4)
    phrase = [generator.randrange(3, VOCAB_SIZE) for _ in range(7)]
    return [
        make_request(
            f"r{number}",
            phrase * 3 + phrase[: number + 1],
            sampling=sampling,
            stopping=StoppingParams(60, min_tokens=3, stop_token_ids=frozenset({11, 12})),
        )
        for number, sampling in enumerate(SAMPLINGS)
    ]


class Counting(LocalExecutor):
    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self.num_steps = 0

    def launch(self, output: SchedulerOutput) -> PendingStep:
        self.num_steps += bool(output.scheduled)
        return super().launch(output)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_guesses_change_no_token(tiny_worker: Worker, steps: int) -> None:
    plain = Counting(tiny_worker)
    expected = LocalEngine(tiny_worker, plain).run(*repetitive_requests())
    guessing = Counting(tiny_worker)
    engine = LocalEngine(tiny_worker, guessing, max_steps_in_flight=steps, num_draft_tokens=5)
    answers = engine.run(*repetitive_requests())
    assert {name: answer.tokens for name, answer in answers.items()} == {
        name: answer.tokens for name, answer in expected.items()
    }
    assert 0 < engine.stats.accepted_draft_tokens < engine.stats.draft_tokens
    assert guessing.num_steps < plain.num_steps
    engine.assert_idle()


class Slot:
    """One sequence in slot 3 of a runner of its own."""

    def __init__(self, worker: BareWorker, prompt: list[int], sampling: SamplingParams) -> None:
        self._worker = worker
        self._start, self._step_id = len(prompt), 1
        join = SlotJoin(3, tuple(prompt), len(prompt), tuple(range(9, 17)), sampling, 0, (), 0, None, None)
        row = ScheduledSlot(3, 0, len(prompt), (), samples=True)
        (result,) = self._worker.launch(SchedulerOutput(0, (), (join,), (row,))).result().slots
        self.tokens = list(result.token_ids)

    def step(self, *guesses: int) -> SlotResult:
        row = ScheduledSlot(3, self._start, 1 + len(guesses), (), samples=True, draft_token_ids=guesses)
        (result,) = self._worker.launch(SchedulerOutput(self._step_id, (), (), (row,))).result().slots
        self.tokens += result.token_ids
        self._start += len(result.token_ids)
        self._step_id += 1
        return result


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_row_brings_the_guesses_that_hold_and_one_token_more(
    tiny_model: ResolvedModel, sampling: SamplingParams
) -> None:
    prompt = [5, 9, 4, 80, 23]
    plain = Slot(BareWorker(tiny_model, reference_backend()), prompt, sampling)
    while len(plain.tokens) < 30:
        plain.step()
    truth = plain.tokens
    guessing = Slot(BareWorker(tiny_model, reference_backend()), prompt, sampling)

    def guess(num_right: int, num_wrong: int) -> None:
        at = len(guessing.tokens)
        wrong = [(truth[at + num_right] + 1) % VOCAB_SIZE] + [7] * (num_wrong - 1) if num_wrong else []
        result = guessing.step(*truth[at : at + num_right], *wrong)
        assert list(result.token_ids) == truth[at : at + num_right + 1]

    for num_right, num_wrong in ((0, 1), (2, 0), (0, 0), (3, 2), (0, 3), (5, 1), (0, 0), (1, 1)):
        guess(num_right, num_wrong)
    assert guessing.tokens == truth[: len(guessing.tokens)]
    assert len(guessing.tokens) == 20


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_recorded_verification_brings_the_same(tiny_model: ResolvedModel, padded: bool, steps: int) -> None:
    expected = LocalEngine(BareWorker(tiny_model, reference_backend())).run(*repetitive_requests())
    recorder = CallRecorder()
    graphs = BucketGraphs(recorder, (4, 16)) if padded else LazyGraphs(recorder)
    worker = BareWorker(tiny_model, reference_backend(), graphs, speculation=SpeculationLimits(5, 3))
    ahead = recorder.num_recorded
    assert ahead == (7 if padded else 0)
    engine = LocalEngine(worker, max_steps_in_flight=steps, num_draft_tokens=5)
    answers = engine.run(*repetitive_requests())
    assert all(answers[name].tokens == expected[name].tokens for name in expected)
    assert engine.stats.accepted_draft_tokens > 0
    assert recorder.num_recorded > ahead or padded


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning:triton.*")
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")  # of padded tokens: nothing is there to be read
def test_triton_kernels_verify_as_the_references_do(tiny_model: ResolvedModel) -> None:
    """Rows and tokens that only fill a bucket change nothing, whatever the memory behind them holds."""
    truth = Slot(BareWorker(tiny_model, reference_backend()), [5, 9, 4], SAMPLINGS[0])
    while len(truth.tokens) < 8:
        truth.step()
    sizes = replace(BARE_SIZES, max_num_sequences=4, max_total_tokens=128)
    graphs = BucketGraphs(CallRecorder(), (1,))
    worker = BareWorker(tiny_model, Backend(CPU, triton=True), graphs, sizes, SpeculationLimits(3, 1))
    slot = Slot(worker, [5, 9, 4], SAMPLINGS[0])
    slot.step(truth.tokens[1], 3)
    slot.step(*truth.tokens[len(slot.tokens) : len(slot.tokens) + 3])
    slot.step()
    assert len(slot.tokens) == 8
    assert slot.tokens == truth.tokens
