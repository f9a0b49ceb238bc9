"""Decode rows with guesses: when they have any, and what their outcomes leave behind."""

from __future__ import annotations

import pytest

from tests.support.scheduler_world import World
from tests.support.scheduling import generate_alone, make_limits, make_request
from tokenwire_service.core.events import Completed, FinishReason
from tokenwire_service.scheduling.output import SchedulerOutput, SlotResult, StepResult

ROUND = (1, 2, 3, 4, 1, 2, 3, 4, 1, 2)
"""A prompt with an end that occurred before."""


def drafts(output: SchedulerOutput) -> list[tuple[int, ...]]:
    return [row.draft_token_ids for row in output.scheduled]


def answer(world: World, output: SchedulerOutput, *tokens: tuple[int, ...]) -> None:
    """Take in a step whose rows brought `tokens`, in place of the fake model."""
    slots = tuple(SlotResult(row.slot, drawn) for row, drawn in zip(output.scheduled, tokens, strict=True))
    world.take(world.scheduler.update(output, StepResult(output.step_id, slots), world.now))
    world.scheduler.check_integrity()


def started(world: World, token_id: int = 3, **options: object) -> None:
    """A request of prompt ROUND that has its first token."""
    world.add(make_request(f"r{len(world.requests)}", ROUND, **options))  # type: ignore[arg-type]
    answer(world, world.scheduler.schedule(world.now), *[(token_id,)] * len(world.requests))


def test_a_decode_row_carries_what_followed_last_time() -> None:
    world = World(make_limits(num_draft_tokens=3))
    started(world, max_tokens=20)
    (row,) = world.scheduler.schedule(0.0).scheduled
    assert (row.start, row.num_tokens, row.samples, row.draft_token_ids) == (10, 4, True, (4, 1, 2))


@pytest.mark.parametrize(
    ("drawn", "known"),
    [((9,), 12), ((4, 9), 13), ((4, 1, 9), 14), ((4, 1, 2, 9), 15), ((4, 1, 2, 3), 15)],
)
def test_the_next_row_starts_after_the_last_token_that_stands(drawn: tuple[int, ...], known: int) -> None:
    world = World(make_limits(num_draft_tokens=3))
    started(world, max_tokens=30)
    answer(world, world.scheduler.schedule(0.0), drawn)
    assert world.transcripts["r0"].tokens[0] == [3, *drawn]
    (row,) = world.scheduler.schedule(0.0).scheduled
    assert row.start == known - 1
    stats = world.scheduler.stats()
    assert (stats.draft_tokens, stats.accepted_draft_tokens) == (3, len(drawn) - 1)
    assert stats.generated_tokens == 1 + len(drawn)


@pytest.mark.parametrize("drawn", [(), (9, 9), (4, 9, 2), (4, 1, 2, 3, 4)])
def test_an_answer_that_verifies_no_draft_is_refused(drawn: tuple[int, ...]) -> None:
    world = World(make_limits(num_draft_tokens=3))
    started(world, max_tokens=20)
    with pytest.raises(ValueError, match="with a draft"):
        answer(world, world.scheduler.schedule(0.0), drawn)


def test_what_follows_a_stop_token_is_dropped() -> None:
    world = World(make_limits(num_draft_tokens=3))
    started(world, max_tokens=20, stop_token_ids=frozenset({1}))
    answer(world, world.scheduler.schedule(0.0), (4, 1, 2, 3))
    transcript = world.transcripts["r0"]
    assert transcript.tokens[0] == [3, 4, 1]
    assert (transcript.finishes[0].reason, transcript.finishes[0].stop_token_id) == (FinishReason.STOP, 1)
    assert isinstance(transcript.ending, Completed)
    assert (transcript.ending.draft_tokens, transcript.ending.accepted_draft_tokens) == (3, 2)
    assert transcript.ending.completion_tokens == 3
    world.assert_idle()


def test_no_guess_is_past_the_last_token_asked_for() -> None:
    world = World(make_limits(num_draft_tokens=8))
    started(world, max_tokens=4)
    output = world.scheduler.schedule(0.0)
    assert drafts(output) == [(4, 1)]
    answer(world, output, (4, 1, 2))
    assert world.transcripts["r0"].finishes[0].reason is FinishReason.MAX_TOKENS
    world.assert_idle()


def test_a_full_batch_has_no_drafts() -> None:
    world = World(make_limits(num_draft_tokens=3, draft_max_batch=1, max_batch_prefill_tokens=64))
    started(world, max_tokens=20)
    assert world.scheduler.wants_confirmed_tokens()
    started(world, max_tokens=20)
    assert not world.scheduler.wants_confirmed_tokens()
    assert drafts(world.scheduler.schedule(0.0)) == [(), ()]


@pytest.mark.parametrize("options", [{"frequency_penalty": 0.5}, {"logprobs": True}, {"min_tokens": 2}])
def test_rows_whose_draws_depend_on_one_another_have_no_drafts(options: dict[str, object]) -> None:
    world = World(make_limits(num_draft_tokens=3))
    started(world, max_tokens=20, **options)
    assert not world.scheduler.wants_confirmed_tokens()
    output = world.scheduler.schedule(0.0)
    assert drafts(output) == [()]
    answer(world, output, (4,))
    assert drafts(world.scheduler.schedule(0.0)) == [(1, 2, 3) if "min_tokens" in options else ()]


def test_guesses_take_no_token_of_the_budget_from_another_sequence() -> None:
    world = World(make_limits(num_draft_tokens=6, max_batch_prefill_tokens=24, num_blocks=32))
    world.add(make_request("a", ROUND, max_tokens=20))
    world.add(make_request("b", ROUND, max_tokens=20))
    answer(world, world.scheduler.schedule(0.0), (3,), (3,))
    assert [len(draft) for draft in drafts(world.scheduler.schedule(0.0))] == [6, 6]
    small = World(make_limits(num_draft_tokens=6, max_batch_prefill_tokens=5, num_blocks=32))
    for name in ("a", "b"):
        small.add(make_request(name, (1,) * 6, max_tokens=40, top_k=1))
    for _ in range(20):
        small.step()
    assert max(output.num_tokens for output in small.outputs) == 5
    rows = [output for output in small.outputs if len(output.scheduled) == 2]
    assert any(sum(map(len, drafts(output))) > 0 for output in rows)


def test_guesses_take_no_block_another_sequence_is_about_to_need() -> None:
    world = World(make_limits(num_blocks=4, block_size=4, num_draft_tokens=6, max_total_tokens=16))
    started(world, max_tokens=6)
    # Its three blocks hold 12 tokens, 11 of which are known; the spare one is kept for its next token.
    output = world.scheduler.schedule(0.0)
    assert drafts(output) == [(4,)]
    assert output.scheduled[0].new_block_ids == ()


def test_a_sequence_with_guesses_in_flight_sits_out_until_they_are_verified() -> None:
    world = World(make_limits(num_draft_tokens=3))
    started(world, max_tokens=20)
    first = world.scheduler.schedule(0.0)
    assert world.scheduler.wants_confirmed_tokens()
    second = world.scheduler.schedule(0.0)
    world.scheduler.check_integrity()
    assert (drafts(first), second.scheduled) == ([(4, 1, 2)], ())
    answer(world, first, (4, 1, 9))
    assert world.scheduler.schedule(0.0).scheduled[0].start == 13


def test_guesses_wait_for_tokens_being_drawn() -> None:
    world = World(make_limits(num_draft_tokens=3))
    world.add(make_request("a", ROUND, max_tokens=20))
    assert not world.scheduler.wants_confirmed_tokens()
    prefill = world.scheduler.schedule(0.0)
    assert drafts(world.scheduler.schedule(0.0)) == [()]
    answer(world, prefill, (3,))
    assert world.scheduler.wants_confirmed_tokens()


def test_a_text_without_repeats_asks_nobody_to_wait() -> None:
    world = World(make_limits(num_draft_tokens=3))
    world.add(make_request("a", tuple(range(10)), max_tokens=20))
    answer(world, world.scheduler.schedule(0.0), (20,))
    for token_id in range(21, 30):
        assert not world.scheduler.wants_confirmed_tokens()
        output = world.scheduler.schedule(0.0)
        assert drafts(output) == [()]
        answer(world, output, (token_id,))
    assert world.scheduler.stats().draft_tokens == 0


def test_drafts_that_never_hold_are_given_up() -> None:
    world = World(make_limits(num_blocks=64, num_draft_tokens=4, max_total_tokens=250))
    started(world, token_id=100, max_tokens=200)
    num_drafted = 0
    for _ in range(200):
        output = world.scheduler.schedule(0.0)
        if not output.scheduled:
            break
        (draft,) = drafts(output)
        num_drafted += bool(draft)
        num_known = len(world.transcripts["r0"].tokens[0])
        # 1 and 2, and after them another token each time.
        answer(world, output, (num_known % 3 or 100 + num_known,))
    assert 1 <= num_drafted < 20


def test_speculation_needs_fewer_steps_for_the_same_text() -> None:
    steps = {}
    for num_draft_tokens in (0, 4):
        world = World(make_limits(num_blocks=64, num_draft_tokens=num_draft_tokens, max_total_tokens=100))
        request = make_request("a", (1, 2, 3), max_tokens=80, top_k=1)
        world.add(request)
        steps[num_draft_tokens] = world.run()
        world.assert_transcripts()
        assert tuple(world.transcripts["a"].tokens[0]) == generate_alone(request, 0)[0]
    assert steps[0] == 80
    assert steps[4] < 25


def test_only_confirmed_blocks_are_found_by_others() -> None:
    world = World(make_limits(num_blocks=32, block_size=2, num_draft_tokens=6, max_total_tokens=40))
    started(world, max_tokens=20)
    output = world.scheduler.schedule(0.0)
    assert drafts(output) == [(4, 1, 2, 3, 4, 1)]
    answer(world, output, (4, 9))
    # Positions up to the accepted guess are cached: 10 of the prompt, tokens 3 and 4.
    assert world.scheduler.stats().num_cached_blocks == 6
    world.add(make_request("b", (*ROUND, 3, 4, 1, 2, 3), max_tokens=4))
    join = world.scheduler.schedule(0.0).joins[0]
    assert world.transcripts["b"].admitted is None
    world.settle()
    admitted = world.transcripts["b"].admitted
    assert admitted is not None
    assert (admitted.cached_prompt_tokens, len(join.block_ids)) == (12, 8)
