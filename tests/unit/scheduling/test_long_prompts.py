"""Prompts too long for one step, beside others."""

from __future__ import annotations

from tests.support.scheduler_world import World
from tests.support.scheduling import make_limits, make_request, rows


def test_a_prompt_too_long_for_a_step_takes_a_small_part_of_those_that_others_need() -> None:
    world = World(make_limits(max_batch_prefill_tokens=8, long_prompt_chunk=2))
    world.add(make_request("long", tuple(range(30, 46)), max_tokens=1))
    assert rows(world.step()) == [(0, 0, 8, False)], "alone it takes whole steps"
    world.add(make_request("short", (1, 2, 3), max_tokens=3))
    assert rows(world.step()) == [(0, 8, 2, False), (1, 0, 3, True)], "a short one need not wait"
    assert rows(world.step()) == [(1, 3, 1, True), (0, 10, 2, False)]
    assert rows(world.step()) == [(1, 4, 1, True), (0, 12, 2, False)]
    assert rows(world.step()) == [(0, 14, 2, True)]
    world.run()
    world.assert_transcripts()


def test_long_prompts_share_their_part_of_a_step() -> None:
    world = World(make_limits(max_batch_prefill_tokens=8, long_prompt_chunk=2))
    world.add(make_request("decoding", (1, 2, 3), max_tokens=20))
    world.step()
    for name in ("first", "second"):
        world.add(make_request(name, tuple(range(20, 30)) if name == "first" else tuple(range(30, 40)), max_tokens=1))
    assert rows(world.step()) == [(0, 3, 1, True), (1, 0, 2, False), (2, 0, 1, False)], "one token to join with"
    assert rows(world.step()) == [(0, 4, 1, True), (1, 2, 2, False)]
    world.run()
    world.assert_transcripts()
