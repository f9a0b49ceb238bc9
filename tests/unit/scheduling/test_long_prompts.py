"""Prompts too long for one step, beside others."""

from __future__ import annotations

from tests.support.scheduler_world import World
from tests.support.scheduling import make_limits, make_request, rows


def world_with_bound() -> World:
    """Steps of 64 tokens, of which a long prompt has 8 beside others before anything is measured."""
    return World(make_limits(64, 4, 4, 64, 200, max_decode_slowdown=1.5))


def test_a_prompt_too_long_for_a_step_takes_a_small_part_of_those_that_others_need() -> None:
    world = world_with_bound()
    world.add(make_request("long", tuple(i % 50 for i in range(90)), max_tokens=1))
    assert rows(world.step()) == [(0, 0, 64, False)], "alone it takes whole steps"
    world.add(make_request("short", (1, 2, 3), max_tokens=3))
    assert rows(world.step()) == [(0, 64, 8, False), (1, 0, 3, True)], "a short one need not wait"
    assert rows(world.step()) == [(1, 3, 1, True)], "a step without it, to see how long one takes"
    assert rows(world.step()) == [(1, 4, 1, True), (0, 72, 8, False)]
    assert rows(world.step()) == [(0, 80, 10, True)]
    world.run()
    world.assert_transcripts()


def test_long_prompts_share_their_part_of_a_step() -> None:
    world = world_with_bound()
    world.add(make_request("decoding", (1, 2, 3), max_tokens=20))
    world.step()
    world.add(make_request("first", tuple(i % 50 for i in range(70)), max_tokens=1))
    world.add(make_request("second", tuple(i % 40 for i in range(70)), max_tokens=1))
    world.step()
    assert rows(world.step()) == [(0, 4, 1, True), (1, 0, 8, False)]
    world.run()
    world.assert_transcripts()


def test_without_a_bound_they_take_all_that_is_left() -> None:
    world = World(make_limits(64, 4, 4, 64, 200))
    world.add(make_request("decoding", (1, 2, 3), max_tokens=20))
    world.step()
    world.add(make_request("long", tuple(i % 50 for i in range(90)), max_tokens=1))
    assert rows(world.step()) == [(0, 3, 1, True), (1, 0, 63, False)]
    world.run()
    world.assert_transcripts()
