"""Time limits, deadlines, aborts, and what arrives after them."""

from __future__ import annotations

import pytest

from tests.support.scheduler_world import World
from tests.support.scheduling import generate_alone, make_limits, make_request
from tokenwire_service.core.events import Completed, Failed, FailureReason, FinishReason


@pytest.mark.parametrize("depth", [1, 2])
def test_a_time_limit_returns_what_there_is(depth: int) -> None:
    world = World(make_limits(), depth)
    world.add(make_request("a", max_tokens=30, time_limit_s=4.5, num_candidates=2))
    world.run(tick_s=1.0)
    transcript = world.transcripts["a"]
    assert isinstance(transcript.ending, Completed)
    assert {finish.reason for finish in transcript.finishes.values()} == {FinishReason.TIME_LIMIT}
    assert transcript.ending.completion_tokens > 0
    world.assert_transcripts()
    world.assert_idle()


def test_a_time_limit_in_the_queue_completes_with_nothing() -> None:
    world = World(make_limits(max_num_sequences=1))
    world.add(make_request("a", max_tokens=30))
    world.step()
    world.add(make_request("b", (9,), time_limit_s=2.0))
    world.run(tick_s=1.0)
    transcript = world.transcripts["b"]
    assert isinstance(transcript.ending, Completed)
    assert (transcript.ending.completion_tokens, transcript.ending.queue_time_s) == (0, 2.0)
    assert transcript.finishes[0].reason is FinishReason.TIME_LIMIT
    world.assert_idle()


def test_a_deadline_fails_wherever_the_request_is() -> None:
    world = World(make_limits(max_num_sequences=1))
    world.add(make_request("running", max_tokens=30, deadline=3.5))
    world.step()
    world.add(make_request("queued", (9,), deadline=2.0))
    assert world.scheduler.next_deadline() == 2.0
    world.run(tick_s=1.0)
    running, queued = world.transcripts["running"].ending, world.transcripts["queued"].ending
    assert isinstance(running, Failed)
    assert isinstance(queued, Failed)
    assert running.reason is queued.reason is FailureReason.DEADLINE_EXCEEDED
    assert (running.generated_tokens, queued.generated_tokens) == (4, 0)
    assert world.transcripts["queued"].admitted is None
    world.assert_idle()


def test_a_queue_deadline_counts_only_until_first_scheduled() -> None:
    world = World(make_limits(max_num_sequences=1))
    world.add(make_request("a", max_tokens=10, queue_deadline=3.0))
    world.step()
    assert world.scheduler.next_deadline() is None
    world.add(make_request("b", (9,), queue_deadline=3.0))
    assert world.scheduler.next_deadline() == 3.0
    world.run(tick_s=1.0)
    assert isinstance(world.transcripts["a"].ending, Completed)
    ending = world.transcripts["b"].ending
    assert isinstance(ending, Failed)
    assert ending.reason is FailureReason.QUEUE_TIMEOUT


def test_a_preempted_request_is_past_its_queue_deadline_for_good() -> None:
    world = World(make_limits(num_blocks=6, block_size=2, max_total_tokens=12))
    world.add(make_request("low", (1, 2), max_tokens=10, queue_deadline=3.0))
    world.add(make_request("high", (3, 4), max_tokens=10, priority=1))
    world.run(tick_s=1.0)
    assert world.scheduler.stats().preemptions > 0
    assert isinstance(world.transcripts["low"].ending, Completed)
    world.assert_transcripts()


def test_an_expired_request_is_never_scheduled() -> None:
    world = World(make_limits())
    world.add(make_request("a", deadline=1.0))
    world.now = 1.0
    output = world.step()
    assert (output.joins, output.scheduled) == ((), ())
    world.assert_idle()


def test_an_idle_engine_drops_what_expired() -> None:
    world = World(make_limits())
    world.add(make_request("a", deadline=1.0))
    world.scheduler.drop_expired(0.5)
    assert world.scheduler.take_events() == []
    world.scheduler.drop_expired(1.5)
    (failed,) = world.scheduler.take_events()
    assert isinstance(failed, Failed)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_cancelled_request_is_silent_and_its_blocks_are_free_at_once(depth: int) -> None:
    world = World(make_limits(), depth)
    world.add(make_request("a", tuple(range(10)), max_tokens=30, num_candidates=3))
    for _ in range(6):
        world.step()
    assert world.scheduler.stats().num_free_blocks < 16
    assert world.scheduler.abort("a", None)
    assert world.scheduler.stats().num_free_blocks == 16
    assert not world.scheduler.abort("a", None)
    while world.in_flight:
        output, result = world.in_flight.popleft()
        assert world.scheduler.update(output, result, 0.0) == []
    world.assert_idle()


def test_an_operators_abort_tells_how_much_was_generated() -> None:
    world = World(make_limits())
    world.add(make_request("a", max_tokens=30))
    for _ in range(5):
        world.step()
    world.abort("a")
    ending = world.transcripts["a"].ending
    assert isinstance(ending, Failed)
    assert (ending.reason, ending.generated_tokens) == (FailureReason.ABORTED_BY_OPERATOR, 5)
    world.assert_idle()


def test_every_failure_reason_has_a_message() -> None:
    for reason in FailureReason:
        world = World(make_limits())
        world.add(make_request("a"))
        assert world.scheduler.abort("a", reason)
        (failed,) = world.scheduler.take_events()
        assert isinstance(failed, Failed)
        assert (failed.reason, bool(failed.message)) == (reason, True)


def test_a_stop_seen_one_step_late_drops_the_extra_token() -> None:
    alone, _ = generate_alone(make_request("a", max_tokens=6), 0)
    stop = frozenset({alone[2]} - set(alone[:2]))
    assert stop
    world = World(make_limits(), depth=2)
    world.add(make_request("a", max_tokens=6, stop_token_ids=stop))
    world.run()
    assert tuple(world.transcripts["a"].tokens[0]) == alone[:3]
    assert sum(output.num_tokens for output in world.outputs) == 3 + 3, "one decode more than was needed"
    world.assert_transcripts()
    world.assert_idle()


def test_one_step_ahead_never_plans_past_max_tokens() -> None:
    world = World(make_limits(), depth=2)
    world.add(make_request("a", max_tokens=4))
    world.run()
    assert sum(output.num_tokens for output in world.outputs) == 3 + 3
    world.assert_transcripts()


def test_a_slot_and_a_block_reused_while_the_last_owners_step_is_in_flight() -> None:
    """One slot, blocks for one: the next request takes over both before the stopped one's extra step returned."""
    alone, _ = generate_alone(make_request("a", max_tokens=6), 0)
    world = World(make_limits(num_blocks=3, max_num_sequences=1, max_total_tokens=12), depth=2)
    world.add(make_request("a", max_tokens=6, stop_token_ids=frozenset({alone[1]})))
    world.add(make_request("b", (9, 8, 7, 6, 5), max_tokens=7))
    world.run()
    world.assert_transcripts()
    world.assert_idle()
