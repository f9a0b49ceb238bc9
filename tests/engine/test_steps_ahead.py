"""Launching steps before the results of those before them changes nothing but when things are known."""

import dataclasses
import random

import pytest

from tests.support.local_engine import TINY_LIMITS, VOCAB_SIZE, LocalEngine, load_tiny_worker, make_request
from tokenwire_service.core.events import Completed, EngineEvent, Failed, TokenLogprob, TokensGenerated
from tokenwire_service.core.params import LogprobsParams, Request, SamplingParams, StoppingParams
from tokenwire_service.runner.executor import LocalExecutor, PendingStep
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import SchedulerOutput, StepResult
from tokenwire_service.weights.resolved import ResolvedModel

AHEAD = pytest.mark.parametrize("steps", [2, 3])


def requests_of_all_sorts(seed: int, count: int = 24) -> list[Request]:
    """Prompts share prefixes; every sampling parameter occurs."""
    generator = random.Random(seed)
    shared = [generator.randrange(3, VOCAB_SIZE) for _ in range(40)]
    requests = []
    for number in range(count):
        own = [generator.randrange(3, VOCAB_SIZE) for _ in range(generator.randrange(1, 50))]
        sampling = SamplingParams(
            temperature=generator.choice([0.0, 0.7, 1.2]),
            top_p=generator.choice([1.0, 0.9]),
            top_k=generator.choice([0, 0, 20]),
            min_p=generator.choice([0.0, 0.05]),
            typical_p=generator.choice([1.0, 1.0, 0.9]),
            repetition_penalty=generator.choice([1.0, 1.0, 1.3]),
            presence_penalty=generator.choice([0.0, 0.0, 1.0]),
            context_frequency_penalty=generator.choice([0.0, 0.0, 1.0]),
            logit_bias=generator.choice([(), ((5, 3.0),)]),
            allowed_token_ids=generator.choice([(), (), tuple(range(3, 60))]),
            seed=number,
        )
        stopping = StoppingParams(
            max_tokens=generator.randrange(1, 40),
            min_tokens=generator.choice([0, 0, 6]),
            stop_token_ids=frozenset(generator.choice([(), (7, 8, 9), tuple(range(10, 40))])),
        )
        requests.append(
            make_request(
                f"r{number}",
                (shared if generator.random() < 0.5 else []) + own,
                sampling=sampling,
                stopping=stopping,
                num_candidates=generator.choice([1, 1, 1, 3]),
                logprobs=generator.choice([None, None, LogprobsParams(2, (4,))]),
                prompt_logprobs=generator.choice([None, None, None, LogprobsParams(1)]),
            )
        )
    return requests


@AHEAD
@pytest.mark.parametrize("seed", range(2))
def test_tokens_and_endings_are_the_same(tiny_worker: Worker, seed: int, steps: int) -> None:
    requests = requests_of_all_sorts(seed)
    expected = LocalEngine(tiny_worker).run(*requests)
    engine = LocalEngine(tiny_worker, max_steps_in_flight=steps)
    answers = engine.run(*requests)
    for request in requests:
        was, now = expected[request.request_id], answers[request.request_id]
        assert now.tokens == was.tokens, request
        assert_near(now.prompt_logprobs, was.prompt_logprobs)
        assert finishes(now.events) == finishes(was.events)
        for index, logprobs in was.logprobs.items():
            assert_near(now.logprobs[index], logprobs)
    engine.assert_idle()


def finishes(events: list[EngineEvent]) -> set[object]:
    return {(e.index, e.finish) for e in events if isinstance(e, TokensGenerated) and e.finish is not None}


def assert_near(scores: list[TokenLogprob], expected: list[TokenLogprob]) -> None:
    for score, other in zip(scores, expected, strict=True):
        assert score.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert score.top_token_ids == other.top_token_ids


@AHEAD
def test_preempted_sequences_go_on(tiny_model: ResolvedModel, tiny_worker: Worker, steps: int) -> None:
    requests = [
        dataclasses.replace(request, logprobs=None, prompt_logprobs=None, stopping=StoppingParams(max_tokens=40))
        for request in requests_of_all_sorts(7, 12)
    ]
    crowded = load_tiny_worker(tiny_model, dataclasses.replace(TINY_LIMITS, max_batch_total_tokens=320))
    engine = LocalEngine(crowded, max_steps_in_flight=steps)
    answers = engine.run(*requests)
    assert engine.stats.preemptions > 0
    expected = LocalEngine(tiny_worker).run(*requests)
    assert all(answers[r.request_id].tokens == expected[r.request_id].tokens for r in requests)
    engine.assert_idle()


@AHEAD
def test_random_cancels_leave_nothing_and_disturb_nobody(tiny_worker: Worker, steps: int) -> None:
    generator = random.Random(steps)
    waiting = [dataclasses.replace(r, prompt_logprobs=None) for r in requests_of_all_sorts(3, 60)]
    expected = LocalEngine(tiny_worker).run(*waiting)
    engine = LocalEngine(tiny_worker, max_steps_in_flight=steps)
    started: list[str] = []
    cancelled: set[str] = set()
    finished_early: set[str] = set()
    while waiting or engine.scheduler.has_work():
        new = [waiting.pop() for _ in range(min(len(waiting), generator.randrange(3)))]
        started += [request.request_id for request in new]
        victims = tuple(name for name in started if generator.random() < 0.01)
        ended = ((generator.choice(started), generator.randrange(3)),) if started and generator.random() < 0.1 else ()
        cancelled |= set(victims)
        finished_early |= {name for name, _ in ended}
        engine.step(submissions=tuple(new), closed=victims, finished_candidates=ended)
        engine.scheduler.check_integrity()
    engine.assert_idle()
    assert cancelled
    for name in set(started) - cancelled - finished_early:
        assert engine.answer(name).tokens == expected[name].tokens
        assert isinstance(engine.answer(name).end, Completed)


class Watched(LocalExecutor):
    """Notes the order of launches and results."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self.notes: list[str] = []

    def launch(self, output: SchedulerOutput) -> PendingStep:
        pending = super().launch(output)
        if not output.scheduled:
            return pending
        self.notes.append(f"launch {output.step_id}")
        return Noting(self, output.step_id, pending)


class Noting:
    def __init__(self, executor: Watched, step_id: int, pending: PendingStep) -> None:
        self._executor, self._step_id, self._pending = executor, step_id, pending

    def result(self) -> StepResult:
        self._executor.notes.append(f"result {self._step_id}")
        return self._pending.result()


def test_the_next_step_is_launched_before_the_result_is_asked_for(tiny_worker: Worker) -> None:
    executor = Watched(tiny_worker)
    engine = LocalEngine(tiny_worker, executor, max_steps_in_flight=2)
    engine.run(make_request("a", [5, 6, 7], 3))
    assert executor.notes == ["launch 0", "launch 1", "result 0", "launch 2", "result 1", "result 2"]
    executor.notes.clear()
    engine.run(make_request("b", [5, 6, 7], stopping=StoppingParams(9, stop_token_ids=frozenset(range(VOCAB_SIZE)))))
    assert [note.split()[0] for note in executor.notes] == ["launch", "launch", "result", "result"]
    assert len(engine.answer("b").tokens[0]) == 1


class Failing(Watched):
    """One step is lost, at launch or when its result is asked for."""

    def __init__(self, worker: Worker, step_id: int, *, late: bool) -> None:
        super().__init__(worker)
        self._step_id, self._late = step_id, late

    def launch(self, output: SchedulerOutput) -> PendingStep:
        if output.step_id != self._step_id:
            return super().launch(output)
        if not self._late:
            raise RuntimeError("broken on purpose")
        super().launch(output)
        return Breaking()


class Breaking:
    def result(self) -> StepResult:
        raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("late", [False, True])
@AHEAD
def test_a_lost_step_fails_its_requests_and_results_keep_their_order(
    tiny_worker: Worker, steps: int, late: bool
) -> None:
    executor = Failing(tiny_worker, 4, late=late)
    engine = LocalEngine(tiny_worker, executor, max_steps_in_flight=steps)
    answers = engine.run(make_request("a", [5, 6], 20), make_request("b", [7], 3))
    assert isinstance(answers["a"].end, Failed)
    assert isinstance(answers["b"].end, Completed)
    results = [int(note.split()[1]) for note in executor.notes if note.startswith("result")]
    assert results == sorted(results)
    engine.assert_idle()
    expected = LocalEngine(tiny_worker).run(make_request("c", [5, 6, 8], 9))["c"].tokens
    assert engine.run(make_request("c", [5, 6, 8], 9))["c"].tokens == expected


def test_a_depth_of_its_own_choice(tiny_worker: Worker) -> None:
    """On the CPU a step is done when it is launched: nothing to gain by running ahead."""
    executor = Watched(tiny_worker)
    assert not executor.runs_ahead
    LocalEngine(tiny_worker, executor).run(make_request("a", [5, 6, 7], 2))
    assert executor.notes == ["launch 0", "result 0", "launch 1", "result 1"]
