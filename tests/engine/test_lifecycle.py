"""Ends of every kind: cancelled, expired, aborted, lost to a failing step; and what is left afterwards: nothing."""

import dataclasses
import random
import time

import pytest

from tests.support.local_engine import LocalEngine, make_request
from tokenwire_service.core.events import Completed, Failed, FailureReason
from tokenwire_service.core.params import LogprobsParams, SamplingParams, StoppingParams
from tokenwire_service.runner.executor import LocalExecutor, PendingStep
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import SchedulerOutput, StepResult


def end_reason(engine: LocalEngine, request_id: str) -> FailureReason | None:
    end = engine.answer(request_id).end
    return end.reason if isinstance(end, Failed) else None


def test_a_closed_request_frees_its_blocks_within_one_step(engine: LocalEngine) -> None:
    engine.step(submissions=(make_request("a", range(5, 40), 100, num_candidates=2),))
    for _ in range(5):
        engine.step()
    assert engine.stats.num_running > 0
    assert engine.stats.num_free_blocks < engine.stats.num_blocks
    engine.step(closed=("a",))
    engine.assert_idle()
    assert engine.answer("a").end is None


def test_a_deadline_ends_a_running_request(engine: LocalEngine) -> None:
    request = dataclasses.replace(make_request("a", [5, 6], 200), deadline=time.monotonic() + 0.05)
    engine.step(submissions=(request,))
    while engine.scheduler.has_work():
        engine.step()
    assert end_reason(engine, "a") is FailureReason.DEADLINE_EXCEEDED
    engine.assert_idle()


def test_an_expired_request_is_dropped_before_prefill(engine: LocalEngine) -> None:
    engine.step(submissions=(dataclasses.replace(make_request("a", [5, 6]), deadline=time.monotonic() - 1),))
    assert end_reason(engine, "a") is FailureReason.DEADLINE_EXCEEDED
    assert engine.stats.num_steps == 0


def test_an_operator_aborts(engine: LocalEngine) -> None:
    engine.step(submissions=(make_request("a", [5, 6], 100), make_request("b", [7], 3)))
    engine.step(aborted=("a", "unknown"))
    assert end_reason(engine, "a") is FailureReason.ABORTED_BY_OPERATOR
    while engine.scheduler.has_work():
        engine.step()
    assert isinstance(engine.answer("b").end, Completed)


def test_candidates_end_early_one_by_one(engine: LocalEngine) -> None:
    sampling = SamplingParams(seed=1)
    engine.step(submissions=(make_request("a", [5, 6], 100, num_candidates=2, sampling=sampling),))
    engine.step()
    engine.step(finished_candidates=(("a", 0),))
    length = len(engine.answer("a").tokens[0])
    engine.step()
    assert len(engine.answer("a").tokens[0]) == length
    assert engine.answer("a").end is None
    engine.step(finished_candidates=(("a", 1), ("a", 1)))
    assert isinstance(engine.answer("a").end, Completed)
    engine.assert_idle()


def test_blocks_are_counted_once_when_nobody_waits(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[str] = []
    monkeypatch.setattr(engine.scheduler, "check_integrity", lambda: counts.append("counted"))
    engine.step()
    engine.run(make_request("a", [5, 6], 3))
    assert counts == []
    engine.step()
    engine.step()
    assert counts == ["counted"]
    engine.step(submissions=(make_request("b", [5, 6], 3),), closed=("b",))
    assert counts == ["counted"]
    engine.step()
    assert counts == ["counted", "counted"]


class Breaking(LocalExecutor):
    """Raises at the given steps (counted from its first), when they are launched or when their results are wanted."""

    def __init__(self, worker: Worker, broken: set[int], *, after: bool) -> None:
        super().__init__(worker)
        self._broken, self._after, self._count = broken, after, 0

    def launch(self, output: SchedulerOutput) -> PendingStep:
        if not output.scheduled:
            return super().launch(output)
        self._count += 1
        if self._count not in self._broken:
            return super().launch(output)
        if not self._after:
            raise RuntimeError("broken on purpose")
        super().launch(output)
        return Broken()


class Broken:
    def result(self) -> StepResult:
        raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("after", [False, True])
def test_a_failing_step_fails_its_requests_and_no_others(tiny_worker: Worker, after: bool) -> None:
    engine = LocalEngine(tiny_worker, Breaking(tiny_worker, {3}, after=after))
    engine.step(submissions=(make_request("a", [5, 6], 20), make_request("b", [7], 20)))
    engine.step()
    engine.step()
    assert {end_reason(engine, name) for name in "ab"} == {FailureReason.ENGINE_FAILURE}
    assert "broken" not in str(engine.answer("a").end)
    engine.assert_idle()
    expected = LocalEngine(tiny_worker).run(make_request("c", [5, 6, 8], 9))["c"].tokens
    assert engine.run(make_request("c", [5, 6, 8], 9))["c"].tokens == expected


def test_steps_that_go_on_failing_end_the_engine(tiny_worker: Worker) -> None:
    engine = LocalEngine(tiny_worker, Breaking(tiny_worker, {1, 2, 3}, after=False))
    for name in ("a", "b"):
        engine.step(submissions=(make_request(name, [5, 6], 20),))
    with pytest.raises(RuntimeError, match="on purpose"):
        engine.step(submissions=(make_request("c", [5, 6], 20),))


def test_random_starts_cancels_and_deadlines_leave_nothing(engine: LocalEngine) -> None:
    generator = random.Random(17)
    live: list[str] = []
    started = 0
    while started < 500 or engine.scheduler.has_work():
        submissions = []
        for _ in range(min(generator.randrange(0, 6), 500 - started)):
            request = make_request(
                f"r{started}",
                [generator.randrange(3, 97) for _ in range(generator.randrange(1, 70))],
                sampling=SamplingParams(
                    temperature=generator.choice([0.0, 1.0]),
                    top_p=generator.choice([1.0, 0.8]),
                    repetition_penalty=generator.choice([1.0, 1.2]),
                    seed=started,
                ),
                stopping=StoppingParams(generator.randrange(1, 30), stop_token_ids=frozenset({2, 3})),
                num_candidates=generator.choice([1, 1, 1, 3]),
                priority=generator.randrange(3),
                logprobs=generator.choice([None, LogprobsParams(1)]),
            )
            if generator.random() < 0.2:
                request = dataclasses.replace(request, deadline=time.monotonic() + generator.random() * 0.1)
            if generator.random() < 0.1:
                request = dataclasses.replace(request, queue_deadline=time.monotonic() + generator.random() * 0.02)
            submissions.append(request)
            live.append(request.request_id)
            started += 1
        victims = tuple(name for name in live if generator.random() < 0.05)
        finished = ((generator.choice(live), generator.randrange(3)),) if live else ()
        engine.step(submissions=tuple(submissions), closed=victims, finished_candidates=finished)
        live = [name for name in live if name not in victims and engine.answer(name).end is None]
        engine.scheduler.check_integrity()
    engine.assert_idle()
    assert engine.stats.generated_tokens > 500
