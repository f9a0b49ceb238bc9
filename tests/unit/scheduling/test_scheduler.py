from __future__ import annotations

import pytest

from tests.support.scheduler_world import World
from tests.support.scheduling import generate_alone, make_limits, make_request, rows, score_alone
from tokenwire_service.core.events import Completed, EngineEvent, FinishReason, TokensGenerated
from tokenwire_service.errors import InvalidParameterError
from tokenwire_service.scheduling.output import SchedulerOutput, SlotResult, StepResult
from tokenwire_service.scheduling.scheduler import Scheduler


def joined(output: SchedulerOutput) -> list[int]:
    """First prompt token of each join: names the request in these tests."""
    return [join.token_ids[0] for join in output.joins]


def feed(scheduler: Scheduler, output: SchedulerOutput, token_id: int = 7, now: float = 0.0) -> list[EngineEvent]:
    """Update with the same token for every row that samples."""
    results = tuple(SlotResult(row.slot, (token_id,)) for row in output.scheduled if row.samples)
    return scheduler.update(output, StepResult(output.step_id, results), now)


# --- what is computed, and in which order


def test_a_prompt_is_prefilled_then_decoded_one_token_a_step() -> None:
    world = World(make_limits())
    world.add(make_request("a", (1, 2, 3, 4, 5), max_tokens=3))
    assert [rows(world.step()) for _ in range(3)] == [[(0, 0, 5, True)], [(0, 5, 1, True)], [(0, 6, 1, True)]]
    world.assert_transcripts()
    last = world.scheduler.schedule(0.0)
    assert (last.leaves, last.scheduled) == ((0,), ())
    world.assert_idle()


def test_a_long_prompt_is_chunked_and_decodes_come_first() -> None:
    world = World(make_limits(max_batch_prefill_tokens=8))
    world.add(make_request("a", (1, 2, 3), max_tokens=9))
    world.step()
    world.add(make_request("b", tuple(range(10, 30)), max_tokens=2))
    assert rows(world.step()) == [(0, 3, 1, True), (1, 0, 7, False)]
    assert rows(world.step()) == [(0, 4, 1, True), (1, 7, 7, False)]
    assert rows(world.step()) == [(0, 5, 1, True), (1, 14, 6, True)]
    world.run()
    world.assert_transcripts()


def test_running_prefills_go_before_waiting_ones() -> None:
    world = World(make_limits(max_batch_prefill_tokens=8))
    world.add(make_request("a", tuple(range(10)), max_tokens=1))
    world.step()
    world.add(make_request("b", tuple(range(40, 50)), max_tokens=1, priority=50))
    assert rows(world.step()) == [(0, 8, 2, True), (1, 0, 6, False)]


def test_waiting_order_is_priority_then_deadline_then_arrival() -> None:
    world = World(make_limits(max_num_sequences=8))
    for name, priority, deadline, arrival in (
        (1, 0, None, 0.0),
        (2, 0, None, 0.1),
        (3, 0, 90.0, 0.2),
        (4, 0, 80.0, 0.3),
        (5, 2, None, 0.4),
        (6, -1, 10.0, 0.5),
    ):
        request = make_request(f"r{name}", (name,), priority=priority, deadline=deadline, arrival_time=arrival)
        world.add(request)
    assert joined(world.step()) == [5, 4, 3, 1, 2, 6]


def test_waiting_raises_the_effective_priority() -> None:
    world = World(make_limits(max_num_sequences=1, ageing_interval_s=5.0))
    world.add(make_request("old", (1,), arrival_time=0.0, priority=0))
    world.add(make_request("new", (2,), arrival_time=19.0, priority=2))
    world.add(make_request("newer", (3,), arrival_time=19.0, priority=4))
    order = [name for _ in range(20) for name in joined(world.step())]
    assert order == [3, 1, 2]


def test_slots_are_reused_and_leaves_come_in_the_same_output_as_the_join_that_reuses() -> None:
    world = World(make_limits(max_num_sequences=1))
    world.add(make_request("a", (1,), max_tokens=1))
    world.add(make_request("b", (2,), max_tokens=1))
    assert joined(world.step()) == [1]
    output = world.step()
    assert (output.leaves, joined(output), output.joins[0].slot) == ((0,), [2], 0)


def test_no_more_slots_than_tokens_in_a_step() -> None:
    world = World(make_limits(max_num_sequences=8, max_batch_prefill_tokens=3))
    for i in range(8):
        world.add(make_request(f"r{i}", (i,), max_tokens=5))
    world.run()
    assert world.limits.num_slots == 3
    assert max(len(output.scheduled) for output in world.outputs) == 3
    world.assert_transcripts()


def test_a_join_carries_what_the_sampler_needs() -> None:
    scheduler = Scheduler(make_limits())
    request = make_request("a", (1, 2), stop_token_ids=frozenset({9, 4}), prompt_logprobs=True, num_candidates=2)
    scheduler.add(request, 0.0)
    output = scheduler.schedule(0.0)
    join, sibling = output.joins
    assert join.end_token_ids == (4, 9)
    assert join.sampling is request.sampling
    assert (join.candidate_index, sibling.candidate_index) == (0, 1)
    assert join.prompt_logprobs is not None
    assert sibling.prompt_logprobs is None
    assert [row.score_prompt for row in output.scheduled] == [True, False]


# --- blocks


def test_new_blocks_come_with_the_row_that_needs_them() -> None:
    world = World(make_limits(block_size=4))
    world.add(make_request("a", (1, 2, 3), max_tokens=6))
    outputs = [world.step() for _ in range(6)]
    assert [len(output.scheduled[0].new_block_ids) for output in outputs] == [0, 0, 1, 0, 0, 0]
    assert len(outputs[0].joins[0].block_ids) == 1


def test_the_lowest_rank_is_preempted_and_recomputed_with_its_tokens() -> None:
    world = World(make_limits(num_blocks=6, block_size=2, max_total_tokens=12))
    world.add(make_request("low", (1, 2), max_tokens=10, priority=0))
    world.add(make_request("high", (3, 4), max_tokens=10, priority=1))
    world.run()
    assert world.scheduler.stats().preemptions > 0
    rejoins = [join for output in world.outputs for join in output.joins if len(join.token_ids) > 2]
    assert rejoins
    assert {join.token_ids[0] for join in rejoins} == {1}
    assert all(join.num_prompt_tokens == 2 for join in rejoins)
    low = world.transcripts["low"].ending
    assert isinstance(low, Completed)
    assert low.num_preemptions == world.scheduler.stats().preemptions
    world.assert_transcripts()
    world.assert_idle()


def test_joining_leaves_a_spare_block_for_each_that_runs() -> None:
    world = World(make_limits(num_blocks=4, block_size=4, max_num_sequences=3))
    world.add(make_request("a", (1, 2), max_tokens=2))
    world.add(make_request("b", tuple(range(10, 20)), max_tokens=2))
    world.add(make_request("c", (9,), max_tokens=1))
    assert joined(world.step()) == [1], "three blocks for b would leave a none to grow into"
    world.run()
    assert [name for output in world.outputs for name in joined(output)] == [1, 10, 9]
    world.assert_transcripts()


def test_a_sequence_alone_in_a_pool_it_fills_exactly_ends_well() -> None:
    world = World(make_limits(num_blocks=4, block_size=4, max_total_tokens=16))
    world.add(make_request("a", (1, 2, 3), max_tokens=13))
    world.run()
    world.assert_transcripts()
    assert world.scheduler.stats().preemptions == 0


def test_a_second_turn_finds_prompt_and_answer_of_the_first() -> None:
    world = World(make_limits(block_size=4))
    first = make_request("a", (1, 2, 3, 4, 5), max_tokens=8)
    world.add(first)
    world.run()
    answer, _ = generate_alone(first, 0)
    world.add(make_request("b", (*first.prompt_token_ids, *answer, 6), max_tokens=2))
    world.run()
    admitted = world.transcripts["b"].admitted
    assert admitted is not None
    assert admitted.cached_prompt_tokens == 12
    stats = world.scheduler.stats()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (19, 12)
    world.assert_transcripts()


def test_a_prompt_found_whole_computes_its_last_block_again() -> None:
    world = World(make_limits(block_size=4))
    for name in ("a", "b"):
        world.add(make_request(name, tuple(range(8)), max_tokens=2))
        world.run()
    assert [rows(output)[0] for output in world.outputs if output.joins] == [(0, 0, 8, True), (0, 4, 4, True)]
    world.assert_transcripts()


def test_flush_cache_forgets() -> None:
    world = World(make_limits())
    for name in ("a", "b"):
        world.add(make_request(name, tuple(range(9)), max_tokens=1))
        world.run()
        world.scheduler.flush_cache()
    admitted = world.transcripts["b"].admitted
    assert admitted is not None
    assert admitted.cached_prompt_tokens == 0
    assert world.scheduler.stats().num_cached_blocks == 0


# --- candidates


def test_siblings_wait_for_the_leader_and_hit_its_prompt() -> None:
    world = World(make_limits(block_size=4, max_batch_prefill_tokens=6))
    world.add(make_request("a", tuple(range(10)), max_tokens=3, num_candidates=3))
    assert [len(world.step().joins) for _ in range(3)] == [1, 0, 2]
    siblings = world.outputs[2]
    assert [row for row in rows(siblings) if row[0] > 0] == [(1, 8, 2, True), (2, 8, 2, True)]
    assert world.scheduler.stats().num_waiting == 0
    world.run()
    world.assert_transcripts()
    completed = world.transcripts["a"].ending
    assert isinstance(completed, Completed)
    assert (completed.completion_tokens, completed.cached_prompt_tokens, completed.prompt_tokens) == (9, 0, 10)


@pytest.mark.parametrize("options", [{"bypass": True}, {"salt": ""}])
def test_candidates_go_together_where_there_is_nothing_to_share(options: dict[str, object]) -> None:
    world = World(make_limits(prefix_caching="bypass" in options))
    world.add(make_request("a", tuple(range(6)), num_candidates=2, **options))  # type: ignore[arg-type]
    assert len(world.step().joins) == 2
    world.run()
    world.assert_transcripts()
    assert world.scheduler.stats().prefix_hit_tokens == 0


def test_a_leader_that_ends_before_its_prompt_is_computed_hands_on() -> None:
    world = World(make_limits(max_batch_prefill_tokens=4))
    world.add(make_request("a", tuple(range(10)), num_candidates=3))
    world.step()
    world.finish_candidate("a", 0)
    world.run()
    world.assert_transcripts()
    assert set(world.transcripts["a"].finishes) == {1, 2}


# --- ends


@pytest.mark.parametrize(("limited", "reason"), [(False, FinishReason.MAX_TOKENS), (True, FinishReason.CONTEXT_LENGTH)])
def test_running_out_of_tokens_names_the_limit(limited: bool, reason: FinishReason) -> None:
    scheduler = Scheduler(make_limits())
    scheduler.add(make_request("a", max_tokens=1, context_limited=limited), 0.0)
    _, generated, completed = feed(scheduler, scheduler.schedule(0.0))
    assert isinstance(generated, TokensGenerated)
    assert generated.finish is not None
    assert generated.finish.reason is reason
    assert isinstance(completed, Completed)


def test_a_stop_token_ends_even_as_the_last_one_and_is_reported() -> None:
    scheduler = Scheduler(make_limits())
    scheduler.add(make_request("a", max_tokens=1, stop_token_ids=frozenset({7})), 0.0)
    _, generated, _ = feed(scheduler, scheduler.schedule(0.0), token_id=7)
    assert isinstance(generated, TokensGenerated)
    assert generated.token_ids == (7,)
    assert generated.finish is not None
    assert (generated.finish.reason, generated.finish.stop_token_id) == (FinishReason.STOP, 7)


def test_finish_candidate_is_silent_until_the_last_and_idempotent() -> None:
    scheduler = Scheduler(make_limits())
    scheduler.add(make_request("a", num_candidates=2), 0.0)
    feed(scheduler, scheduler.schedule(0.0))
    scheduler.finish_candidate("a", 0)
    scheduler.finish_candidate("a", 0)
    scheduler.finish_candidate("a", 9)
    scheduler.finish_candidate("unknown", 0)
    assert scheduler.take_events() == []
    assert scheduler.stats().num_running == 1
    scheduler.finish_candidate("a", 1)
    (completed,) = scheduler.take_events()
    assert isinstance(completed, Completed)
    assert completed.completion_tokens == 2
    assert not scheduler.has_work()


def test_completed_tells_the_times() -> None:
    scheduler = Scheduler(make_limits(max_batch_prefill_tokens=4))
    scheduler.add(make_request("a", tuple(range(6)), max_tokens=2, arrival_time=1.0), 1.5)
    feed(scheduler, scheduler.schedule(2.0), now=3.0)
    feed(scheduler, scheduler.schedule(3.0), now=5.0)
    completed = feed(scheduler, scheduler.schedule(5.0), now=9.0)[-1]
    assert isinstance(completed, Completed)
    assert (completed.queue_time_s, completed.prefill_time_s, completed.total_time_s) == (1.0, 3.0, 8.0)
    assert scheduler.stats().step_time_s == 4.0


def test_prompt_scores_come_in_chunks_once_even_when_preempted() -> None:
    world = World(make_limits(num_blocks=10, block_size=2, max_batch_prefill_tokens=6, max_total_tokens=20))
    world.add(make_request("other", (1,), max_tokens=19, priority=9))
    for _ in range(3):
        world.step()
    request = make_request("a", tuple(range(10)), max_tokens=8, prompt_logprobs=True)
    world.add(request)
    world.run()
    assert world.scheduler.stats().preemptions > 0
    assert tuple(world.transcripts["a"].scores) == score_alone(request)
    world.assert_transcripts()


# --- refusals and misuse


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt": ()}, "prompt"),
        ({"max_tokens": 0}, "stopping.max_tokens"),
        ({"num_candidates": 0}, "sampling.candidate_count"),
        ({"max_tokens": 62}, "stopping.max_tokens"),
        ({"request_id": "taken"}, "request_id"),
    ],
)
def test_what_could_never_run_is_refused_by_field(options: dict[str, object], field: str) -> None:
    scheduler = Scheduler(make_limits(max_total_tokens=64))
    scheduler.add(make_request("taken"), 0.0)
    with pytest.raises(InvalidParameterError) as caught:
        scheduler.add(make_request(**{"request_id": "a", **options}), 0.0)  # type: ignore[arg-type]
    assert caught.value.violations[0].field == field
    assert scheduler.request_ids() == ["taken"]
    scheduler.check_integrity()


def test_a_sequence_larger_than_the_pool_is_refused() -> None:
    scheduler = Scheduler(make_limits(num_blocks=2, block_size=4, max_total_tokens=64))
    with pytest.raises(InvalidParameterError, match="longest sequence"):
        scheduler.add(make_request("a", (1, 2, 3), max_tokens=6), 0.0)
    scheduler.add(make_request("a", (1, 2, 3), max_tokens=5), 0.0)


@pytest.mark.parametrize("name", ["num_blocks", "max_num_sequences", "ageing_interval_s"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_limits(**{name: 0})  # type: ignore[arg-type]


def test_updates_come_in_order_with_one_token_for_each_draw() -> None:
    scheduler = Scheduler(make_limits())
    scheduler.add(make_request("a"), 0.0)
    first, second = scheduler.schedule(0.0), scheduler.schedule(0.0)
    with pytest.raises(ValueError, match="oldest"):
        feed(scheduler, second)
    with pytest.raises(ValueError, match="exactly one token"):
        scheduler.update(first, StepResult(first.step_id, ()), 0.0)


def test_an_output_without_rows_only_brings_events() -> None:
    scheduler = Scheduler(make_limits())
    scheduler.add(make_request("a", time_limit_s=1.0), 0.0)
    output = scheduler.schedule(1.0)
    assert output.scheduled == ()
    assert isinstance(feed(scheduler, output)[-1], Completed)
    assert not scheduler.has_work()


def test_a_failed_slot_ends_its_request_alone() -> None:
    scheduler = Scheduler(make_limits())
    scheduler.add(make_request("a", (1,), num_candidates=2), 0.0)
    scheduler.add(make_request("b", (2,)), 0.0)
    output = scheduler.schedule(0.0)
    results = [SlotResult(row.slot, (7,)) for row in output.scheduled]
    results[0] = SlotResult(output.scheduled[0].slot, failure="not a number")
    events = scheduler.update(output, StepResult(output.step_id, tuple(results)), 0.0)
    failed = [event for event in events if type(event).__name__ == "Failed"]
    assert [(event.request_id, event.message) for event in failed] == [("a", "not a number")]  # type: ignore[union-attr]
    assert scheduler.request_ids() == ["b"]
    scheduler.check_integrity()


def test_stats_count() -> None:
    world = World(make_limits(max_num_sequences=1))
    world.add(make_request("a", tuple(range(9)), max_tokens=2))
    world.add(make_request("b", tuple(range(20, 30)), max_tokens=2, num_candidates=2))
    world.step()
    stats = world.scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.waiting_tokens) == (1, 2, 10)
    assert (stats.num_blocks, stats.num_free_blocks, stats.block_size) == (16, 13, 4)
    assert (stats.prompt_tokens, stats.generated_tokens, stats.num_steps) == (9, 1, 1)
    world.run()
    stats = world.scheduler.stats()
    assert (stats.prompt_tokens, stats.generated_tokens) == (19, 6)
