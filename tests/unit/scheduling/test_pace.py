"""The bound on long prompts by measured time, told of steps whose times are made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenwire_service.scheduling.pace import Pace, StepLoad

PLAIN_S = 0.016


class Steps:
    """Steps of four decodes beside a long prompt without an end; `price(n)` is what n of its tokens add, in seconds."""

    def __init__(self, price: Callable[[int], float], max_tokens: int = 512, scale: float = 1.0) -> None:
        self.pace = Pace(1.5, max_tokens)
        self.price = price
        self.scale = scale
        for _ in range(5):
            self.pace.learn(StepLoad(4, 0), PLAIN_S * scale)

    def chunks(self, num_steps: int) -> list[int]:
        chunks = []
        for _ in range(num_steps):
            num_tokens = int(self.pace.long_prompt_tokens(4, beside_short_prompts=False))
            extra_s = self.price(num_tokens) if num_tokens else 0.0
            self.pace.learn(StepLoad(4, num_tokens), (PLAIN_S + extra_s) * self.scale)
            chunks.append(num_tokens)
        return chunks


def test_a_chunk_grows_to_what_the_bound_allows_and_not_past_it() -> None:
    chunks = Steps(lambda n: 0.0001 * n).chunks(40)
    assert chunks[:4] == [8, 16, 32, 50], "at most twice as many in one step"
    assert set(chunks[20:]) <= {79, 80}


def test_a_chunk_shrinks_as_its_tokens_get_dearer() -> None:
    steps = Steps(lambda n: 0.0001 * n)
    steps.chunks(40)
    steps.price = lambda n: 0.001 * n
    assert steps.chunks(5) == [79, 39, 19, 9, 8], "at once, at most by half"


def test_a_cost_that_comes_with_any_chunk_is_counted() -> None:
    assert set(Steps(lambda n: 0.006 + 0.0001 * n).chunks(60)[40:]) <= set(range(15, 21))


def test_where_no_chunk_is_small_enough_there_is_still_one() -> None:
    assert min(filter(None, Steps(lambda n: 0.1).chunks(100))) == 1
    assert min(filter(None, Steps(lambda n: 0.1, max_tokens=8192).chunks(100))) == 16, "a prompt of 8192 in 512 steps"


@pytest.mark.parametrize("scale", [1 / 1024, 1024.0])
def test_a_faster_or_slower_machine_changes_nothing(scale: float) -> None:
    def price(num_tokens: int) -> float:
        return 0.002 + 0.0003 * num_tokens

    assert Steps(price, scale=scale).chunks(200) == Steps(price).chunks(200)


def test_a_chunk_is_at_most_a_step() -> None:
    assert max(Steps(lambda n: 0.0).chunks(100)) == 512


def test_a_step_that_was_held_up_costs_one_smaller_chunk() -> None:
    steps = Steps(lambda n: 0.0001 * n)
    steady = steps.chunks(40)[-1]
    steps.pace.learn(StepLoad(4, steady), 10.0)
    assert steps.chunks(6) == [39, 56, 67, 73, 76, 78]
    steps.pace.learn(StepLoad(4, 0), 10.0)
    assert steps.chunks(1)[0] <= 80, "a plain one does not make the chunk larger"


def test_now_and_then_a_step_goes_without_so_that_plain_steps_stay_known() -> None:
    chunks = Steps(lambda n: 0.0001 * n).chunks(300)
    without = [step for step, num_tokens in enumerate(chunks) if not num_tokens]
    assert without == [64, 129, 194, 259]


def test_a_batch_of_an_unknown_size_is_measured_soon_and_taken_for_a_cheap_one_until_then() -> None:
    steps = Steps(lambda n: 0.0001 * n)
    assert steps.chunks(40)[-1] == 79
    pace = steps.pace
    assert int(pace.long_prompt_tokens(32, beside_short_prompts=True)) == 79, "no less than a smaller one takes"
    assert int(pace.long_prompt_tokens(1, beside_short_prompts=True)) == 19, "its share of a larger one's"
    assert int(pace.long_prompt_tokens(32, beside_short_prompts=False)) == 0
    pace.learn(StepLoad(32, 0), 4 * PLAIN_S)
    assert int(pace.long_prompt_tokens(32, beside_short_prompts=False)) == 319


def test_a_stale_plain_step_is_forgotten() -> None:
    steps = Steps(lambda n: 0.0001 * n)
    for _ in range(200):
        steps.pace.learn(StepLoad(8, 0), 1.0)
    steps.pace.learn(StepLoad(4, 0), PLAIN_S / 4)
    assert int(steps.pace.long_prompt_tokens(4, beside_short_prompts=False)) == 8
    steps.pace.learn(StepLoad(4, 8), PLAIN_S / 4 + 0.002)
    assert int(steps.pace.long_prompt_tokens(4, beside_short_prompts=False)) == 8, "exactly what is allowed now"


@pytest.mark.parametrize("load", [StepLoad(4, 8, 100), StepLoad(0, 8), StepLoad(4, 0, 100)])
def test_steps_with_anything_else_in_them_say_nothing(load: StepLoad) -> None:
    steps = Steps(lambda n: 0.0001 * n)
    steps.chunks(40)
    before = int(steps.pace.long_prompt_tokens(4, beside_short_prompts=False))
    for _ in range(10):
        steps.pace.learn(load, 5.0)
    assert int(steps.pace.long_prompt_tokens(4, beside_short_prompts=False)) == before


def test_a_prompts_short_end_says_nothing_when_it_was_quick() -> None:
    steps = Steps(lambda n: 0.004 + 0.00005 * n)
    steady = steps.chunks(60)[-1]
    steps.pace.learn(StepLoad(4, 1), PLAIN_S + 0.004)
    assert int(steps.pace.long_prompt_tokens(4, beside_short_prompts=False)) == steady
    steps.pace.learn(StepLoad(4, steady // 2), PLAIN_S + 0.016)
    assert int(steps.pace.long_prompt_tokens(4, beside_short_prompts=False)) <= steady // 2 + 1, "unlike a slow one"


def test_without_a_bound_nothing_is_measured_and_all_is_allowed() -> None:
    pace = Pace(0.0, 512)
    pace.learn(StepLoad(4, 0), 0.001)
    pace.learn(StepLoad(4, 512), 10.0)
    assert int(pace.long_prompt_tokens(4, beside_short_prompts=False)) == 512


SECONDS = st.floats(-1.0, 1e9) | st.floats(0.0, 1e-300) | st.sampled_from([0.0, 1e-9, 0.01])
LOADS = st.builds(StepLoad, st.integers(0, 300), st.sampled_from([0, 1, 8, 512]), st.sampled_from([0, 0, 0, 7]))


@given(
    max_slowdown=st.floats(1.0, 1e6, exclude_min=True),
    max_tokens=st.integers(1, 8192),
    told=st.lists(st.tuples(LOADS, SECONDS, st.booleans()), max_size=200),
)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_whatever_is_measured_prompts_go_on(
    max_slowdown: float, max_tokens: int, told: list[tuple[StepLoad, float, bool]]
) -> None:
    """The chunk stays within its bounds, and no two steps close to each other go without."""
    pace = Pace(max_slowdown, max_tokens)
    last_without = -8
    for num_told, (load, seconds, beside_short_prompts) in enumerate(told):
        chunk = int(pace.long_prompt_tokens(load.decode, beside_short_prompts=beside_short_prompts))
        if chunk == 0:
            assert not beside_short_prompts
            assert num_told - last_without >= 8
            last_without = num_told
        else:
            assert max(1, max_tokens // 512) <= chunk <= max(max_tokens, 8)
        pace.learn(load, seconds)
