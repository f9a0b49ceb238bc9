"""Chunks that go through a few layers a step, computed by a real model."""

from __future__ import annotations

import dataclasses

from tests.support.bare_worker import BareWorker
from tests.support.local_engine import LocalEngine, make_request
from tokenwire_service.core.params import SamplingParams
from tokenwire_service.kernels.backend import reference_backend
from tokenwire_service.runner.executor import LocalExecutor
from tokenwire_service.runner.threaded_executor import ThreadedExecutor
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import LayerSpan, ScheduledSlot, SchedulerOutput, SlotJoin
from tokenwire_service.weights.resolved import ResolvedModel

ASKED = [
    make_request("decoding", [5, 6], 120),
    make_request("long", [7 + i % 80 for i in range(150)], 4),
    make_request("drawn", [9 + i % 70 for i in range(130)], 4, sampling=SamplingParams(seed=3)),
]


def check_tokens(worker: Worker, executor: LocalExecutor | ThreadedExecutor) -> None:
    expected = {request.request_id: LocalEngine(worker).run(request)[request.request_id].tokens for request in ASKED}
    engine = LocalEngine(
        worker, executor, prefix_caching=False, max_decode_slowdown=1.1, num_layers=worker.num_layers_apart
    )
    engine.step(submissions=ASKED[:1])
    engine.step()
    engine.run(*ASKED[1:])
    assert {name: engine.answer(name).tokens for name in expected} == expected
    assert LayerSpan(0, 1, completes=False) in engine.spans
    assert LayerSpan(1, 2, completes=True) in engine.spans
    engine.assert_idle()


def test_they_bring_the_tokens_of_whole_steps(tiny_worker: Worker) -> None:
    check_tokens(tiny_worker, LocalExecutor(tiny_worker))


def test_they_do_one_step_ahead_too(tiny_worker: Worker) -> None:
    executor = ThreadedExecutor(tiny_worker)
    check_tokens(tiny_worker, executor)
    executor.close()


def step(
    step_id: int, *rows: ScheduledSlot, joins: tuple[SlotJoin, ...] = (), leaves: tuple[int, ...] = ()
) -> SchedulerOutput:
    return SchedulerOutput(step_id, leaves, joins, rows)


def part(first: int, end: int) -> ScheduledSlot:
    return ScheduledSlot(0, 0, 8, (), samples=False, layers=LayerSpan(first, end, completes=end == 2))


JOIN = SlotJoin(
    slot=0,
    token_ids=tuple(range(5, 15)),
    num_prompt_tokens=10,
    block_ids=(0,),
    sampling=SamplingParams(temperature=0.0),
    candidate_index=0,
    end_token_ids=(),
    min_tokens=0,
    logprobs=None,
    prompt_logprobs=None,
)


def test_a_part_whose_beginning_was_lost_fails_alone(tiny_model: ResolvedModel) -> None:
    runner = BareWorker(tiny_model, reference_backend())
    other = ScheduledSlot(1, 0, 10, (), samples=True)
    joins = (JOIN, dataclasses.replace(JOIN, slot=1, block_ids=(1,)))
    lost, drawn = sorted(
        runner.launch(step(0, other, part(1, 2), joins=joins)).result().slots, key=lambda result: result.slot
    )
    assert lost.failure == "a step that computed a part of this request was lost; retry"
    assert (drawn.failure, len(drawn.token_ids)) == ("", 1)
    assert runner.launch(step(1, part(0, 1))).result().slots == ()
    runner.launch(step(2, leaves=(0,)))
    (lost,) = runner.launch(step(3, part(1, 2), joins=(JOIN,))).result().slots
    assert lost.failure, "what the slot's last owner left is nobody's"


def test_a_step_of_nothing_else_has_a_result(tiny_model: ResolvedModel) -> None:
    runner = BareWorker(tiny_model, reference_backend())
    assert runner.launch(step(0, part(0, 1), joins=(JOIN,))).result().slots == ()
    assert runner.launch(step(1, part(1, 2))).result().slots == ()
    rest = ScheduledSlot(0, 8, 2, (), samples=True)
    (whole,) = runner.launch(step(2, rest)).result().slots
    alone = BareWorker(tiny_model, reference_backend())
    (expected,) = alone.launch(step(0, ScheduledSlot(0, 0, 10, (), samples=True), joins=(JOIN,))).result().slots
    assert whole.token_ids == expected.token_ids
