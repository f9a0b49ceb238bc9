"""Chunks of long prompts that go through a few layers a step beside others."""

from __future__ import annotations

import pytest

from tests.support.scheduler_world import World
from tests.support.scheduling import make_limits, make_request
from tokenwire_service.scheduling.output import SchedulerOutput

NUM_LAYERS = 20
Span = tuple[int, int, int, int]


def long_prompt(num_tokens: int = 150) -> tuple[int, ...]:
    return tuple(i % 50 for i in range(num_tokens))


def decoding_world(depth: int = 1, num_layers: int = NUM_LAYERS) -> World:
    """Steps of 100 tokens, of which a long prompt has 8, or so many in layers, beside one that decodes."""
    world = World(make_limits(200, 4, 4, 100, 400, max_decode_slowdown=1.5, num_layers=num_layers), depth)
    world.add(make_request("decoding", (1, 2, 3), max_tokens=300))
    world.step()
    return world


def spans(output: SchedulerOutput) -> list[Span]:
    """(slot, start, number of tokens, layer after the last) of the rows that go through some layers."""
    return [(row.slot, row.start, row.num_tokens, row.layers.end) for row in output.scheduled if row.layers is not None]


def spans_of(world: World, num_steps: int) -> list[Span]:
    return [span for _ in range(num_steps) for span in spans(world.step())]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_chunk_goes_through_a_few_layers_a_step_and_the_last_token_through_all(depth: int) -> None:
    world = decoding_world(depth)
    world.add(make_request("long", long_prompt(), max_tokens=1))
    found: list[Span] = []
    while "long" in world.scheduler.request_ids():
        found += spans(world.step())
    # 8 tokens through 20 layers are 64 through 2, or 21 through 7.
    starts = [(1, at, 64, end) for at in (0, 64) for end in range(2, 21, 2)]
    assert found == [*starts, *((1, 128, 21, end) for end in (7, 14, 20))]
    last = [row for output in world.outputs for row in output.scheduled if row.slot == 1 and row.layers is None]
    assert [(row.start, row.num_tokens, row.samples) for row in last] == [(149, 1, True)]
    world.run()
    world.assert_transcripts()


def test_with_nobody_beside_it_a_chunk_is_finished_at_once_and_whole_steps_follow() -> None:
    world = decoding_world()
    world.add(make_request("long", long_prompt(), max_tokens=1))
    assert spans_of(world, 3) == [(1, 0, 64, 2), (1, 0, 64, 4)], "the first step is measured without"
    world.cancel("decoding")
    assert spans_of(world, 1) == [(1, 0, 64, NUM_LAYERS)]
    (row,) = world.step().scheduled
    assert (row.start, row.num_tokens, row.samples, row.layers) == (64, 86, True, None)
    world.run()
    world.assert_transcripts()


def test_one_that_leaves_on_its_way_leaves_nothing() -> None:
    world = decoding_world()
    world.add(make_request("long", long_prompt(), max_tokens=1))
    assert spans_of(world, 3)
    world.cancel("long")
    world.add(make_request("another", long_prompt(120), max_tokens=1))
    assert spans_of(world, 1)[0][:3] == (1, 0, 64)
    world.run()
    world.assert_transcripts()
    world.assert_idle()


def test_a_second_one_waits_for_what_the_first_leaves() -> None:
    world = decoding_world()
    world.add(make_request("first", long_prompt(), max_tokens=1))
    world.add(make_request("second", long_prompt(120), max_tokens=1))
    while "first" in world.scheduler.request_ids():
        world.step()
    found = [slot for output in world.outputs for slot, *_ in spans(output)]
    assert found.count(1) == 23
    assert found[:23] == [1] * 23, "layers of the second begin when the first has none left"
    world.run()
    world.assert_transcripts()


@pytest.mark.parametrize("budget", [32, 64, 100])
def test_a_short_prompt_does_not_wait_for_a_chunk(budget: int) -> None:
    limits = make_limits(200, 4, 4, budget, 400, max_decode_slowdown=1.5, num_layers=NUM_LAYERS)
    world = World(limits)
    world.add(make_request("decoding", (1, 2, 3), max_tokens=300))
    world.add(make_request("long", long_prompt(), max_tokens=1))
    assert spans_of(world, 4)
    world.add(make_request("short", (1, 2, 3, 4), max_tokens=1))
    world.step()
    assert world.transcripts["short"].ending is not None
    world.run()
    world.assert_transcripts()


def test_what_fits_a_step_goes_through_it_whole() -> None:
    world = decoding_world()
    world.add(make_request("first", long_prompt(104), max_tokens=1))
    world.run()
    world.add(make_request("decoding again", (1, 2, 3), max_tokens=300))
    world.step()
    world.add(make_request("again", long_prompt(104), max_tokens=1))
    found = [row for _ in range(4) for row in world.step().scheduled if row.num_tokens > 1]
    assert [(row.start, row.num_tokens, row.samples, row.layers) for row in found] == [(100, 4, True, None)]
    world.run()
    world.assert_transcripts()


def test_one_that_is_preempted_on_its_way_begins_anew() -> None:
    limits = make_limits(40, 4, 4, 100, 200, max_decode_slowdown=1.5, num_layers=NUM_LAYERS, prefix_caching=False)
    world = World(limits)
    world.add(make_request("decoding", (1, 2, 3), max_tokens=150))
    world.step()
    world.add(make_request("long", long_prompt(), max_tokens=1))
    while not world.scheduler.stats().preemptions:
        world.step()
    assert any(spans(output) for output in world.outputs)
    world.run()
    world.assert_transcripts()
    world.assert_idle()


def test_scores_of_a_prompt_need_all_layers_of_a_token() -> None:
    world = decoding_world()
    world.add(make_request("scored", long_prompt(), max_tokens=1, prompt_logprobs=True))
    world.run()
    assert not any(spans(output) for output in world.outputs)
    world.assert_transcripts()
