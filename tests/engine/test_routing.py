"""Which replica takes a request: against brute force, and case by case."""

import random
from collections import defaultdict
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tokenwire_service.core.params import CacheParams, Request, SamplingParams, StoppingParams
from tokenwire_service.engine.routing import (
    BLOCK_TOKENS,
    EXPECTED_TOKENS,
    MAX_BLOCKS,
    MAX_REMEMBERED,
    SESSION_TOKENS,
    Route,
    Router,
)

IDLE = {0: 0, 1: 0, 2: 0}
NO_CACHE = CacheParams()


def request(
    tokens: Sequence[int], *, cache: CacheParams = NO_CACHE, max_tokens: int = 10, candidates: int = 1
) -> Request:
    return Request("r", tuple(tokens), SamplingParams(), StoppingParams(max_tokens), candidates, cache=cache)


def prompt(seed: int, num_tokens: int) -> list[int]:
    return random.Random(seed).choices(range(1000), k=num_tokens)


def router(num_replicas: int = 3) -> Router:
    return Router(num_replicas, key=b"key")


class Memory:
    """What a router should know, by brute force: who was sent a prompt that begins so."""

    def __init__(self) -> None:
        self.holders: dict[tuple[str, tuple[int, ...]], set[int]] = defaultdict(set)

    def saved(self, asked: Request, replica: int) -> int:
        if asked.cache.bypass:
            return 0
        longest = (len(asked.prompt_token_ids) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        lengths = range(longest, 0, -BLOCK_TOKENS)
        return next((n for n in lengths if replica in self.holders[self._key(asked, n)]), 0)

    def add(self, asked: Request, replica: int) -> None:
        if not asked.cache.bypass:
            for length in range(BLOCK_TOKENS, len(asked.prompt_token_ids), BLOCK_TOKENS):
                self.holders[self._key(asked, length)].add(replica)

    def forget(self, replica: int) -> None:
        for holders in self.holders.values():
            holders.discard(replica)

    def _key(self, asked: Request, length: int) -> tuple[str, tuple[int, ...]]:
        return asked.cache.salt, asked.prompt_token_ids[:length]


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Few documents, cut anywhere, with endings of their own: many share a prefix."""
    document = prompt(draw(st.integers(0, 2)), 600)
    return document[: draw(st.integers(1, 600))] + [1000 + draw(st.integers(0, 2))] * draw(st.integers(0, 200))


caches = st.builds(CacheParams, salt=st.sampled_from(["", "a"]), bypass=st.booleans())
actions = st.one_of(
    st.tuples(st.just("send"), prompts(), caches),
    st.tuples(st.just("end"), st.integers(0, 50)),
    st.tuples(st.just("die"), st.integers(0, 2)),
)


@given(st.lists(actions, max_size=30))
def test_the_choice_is_the_least_work_and_no_replica_exceeds_the_bound(story: list[tuple]) -> None:  # type: ignore[type-arg]
    tested, memory = router(), Memory()
    live: list[tuple[int, int]] = []
    for kind, *what in story:
        weights = {each: sum(weight for replica, weight in live if replica == each) for each in range(3)}
        if kind == "send":
            asked = request(what[0], cache=what[1])
            route = tested.choose(asked, weights)
            work = {each: weight - memory.saved(asked, each) for each, weight in weights.items()}
            assert work[route.replica] == min(work.values())
            saved = memory.saved(asked, route.replica)
            assert weights[route.replica] <= min(weights.values()) + saved
            assert route.weight == len(asked.prompt_token_ids) - saved + 10
            memory.add(asked, route.replica)
            live.append((route.replica, route.weight))
        elif kind == "end" and live:
            live.pop(what[0] % len(live))
        elif kind == "die":
            tested.forget(what[0])
            memory.forget(what[0])
            live = [each for each in live if each[0] != what[0]]


def test_a_longer_known_prefix_wins_among_equals_and_only_those_there_are_chosen() -> None:
    tested, long = router(), prompt(0, 1000)
    first = tested.choose(request(long), IDLE).replica
    assert tested.choose(request(long[:500]), IDLE).replica == first
    others = {each: 0 for each in IDLE if each != first}
    assert tested.choose(request(long), others).replica in others


def test_load_wins_when_it_is_more_than_the_prefix_saves() -> None:
    tested, asked = router(2), request(prompt(0, 640))
    saved = 576
    assert tested.choose(asked, {0: 0, 1: 1}) == Route(0, 650)
    assert tested.choose(asked, {0: saved - 1, 1: 0}) == Route(0, 74)
    assert tested.choose(asked, {0: saved + 1, 1: 0}) == Route(1, 650)
    # Both hold it now.
    assert tested.choose(asked, {0: saved + 2, 1: 0}) == Route(1, 74)


def test_equals_take_turns() -> None:
    tested = router()
    assert [tested.choose(request([seed]), IDLE).replica for seed in range(6)] == [0, 1, 2, 0, 1, 2]


def test_the_work_of_an_answer_is_what_it_may_have_up_to_a_limit_for_each_candidate() -> None:
    assert router().choose(request([1, 2], max_tokens=5, candidates=3), IDLE).weight == 2 + 15
    assert router().choose(request([1, 2], max_tokens=9999, candidates=2), IDLE).weight == 2 + 2 * EXPECTED_TOKENS


def test_a_session_stays_up_to_a_bound_and_until_its_replica_goes_down() -> None:
    tested = router(2)
    turn = request([1, 2, 3], cache=CacheParams(session_id="s"))
    assert tested.choose(turn, {0: 0, 1: 0}).replica == 0
    bound = 3 + SESSION_TOKENS
    assert tested.choose(turn, {0: bound - 1, 1: 0}).replica == 0
    assert tested.choose(request([1, 2, 3], cache=CacheParams("salt", session_id="s")), {0: 1, 1: 0}).replica == 1
    assert tested.choose(turn, {0: bound + 1, 1: 0}).replica == 1
    assert tested.choose(turn, {0: 0, 1: 10}).replica == 1
    tested.forget(1)
    assert tested.choose(turn, {0: 0, 1: 10}).replica == 0


def test_a_flush_forgets_prefixes() -> None:
    tested, asked = router(2), request(prompt(0, 640))
    tested.choose(asked, {0: 0, 1: 1})
    tested.forget_prefixes()
    assert tested.choose(asked, {0: 1, 1: 0}).replica == 1


def test_no_more_is_remembered_than_the_caches_hold_and_beginnings_the_longest() -> None:
    tested, long = router(2), prompt(0, 10 * BLOCK_TOKENS + 1)
    assert tested.choose(request(long), {0: 0, 1: 1}).replica == 0
    beginning = 4 * BLOCK_TOKENS
    tested.limit(beginning + BLOCK_TOKENS - 1)
    assert tested.choose(request(long), {0: beginning - 1, 1: 0}) == Route(0, len(long) - beginning + 10)
    for seed in range(10):
        tested.choose(request(prompt(seed, 200)), {0: 0, 1: 0})
        assert len(tested._holders) <= 4
    tested.limit(0)
    assert tested.choose(request(long), {0: 0, 1: 1}).weight == len(long) + 10
    assert tested.choose(request(long), {0: 1, 1: 0}) == Route(1, len(long) + 10)


def test_sessions_and_prefixes_are_bounded() -> None:
    tested = router(2)
    for seed in range(MAX_REMEMBERED // MAX_BLOCKS + 2):
        tested.choose(request(prompt(seed, MAX_BLOCKS * BLOCK_TOKENS + 1)), {0: 0, 1: 0})
    for number in range(MAX_REMEMBERED + 2):
        tested.choose(request([1], cache=CacheParams(session_id=str(number))), {0: 0, 1: 0})
    assert len(tested._holders) == len(tested._sessions) == MAX_REMEMBERED


def test_of_long_prompts_the_beginning_is_looked_at() -> None:
    tested, long = router(2), prompt(0, 3 * MAX_BLOCKS * BLOCK_TOKENS)
    assert tested.choose(request(long), {0: 0, 1: 1}).weight == len(long) + 10
    assert tested.choose(request(long), {0: 0, 1: 1}).weight == len(long) + 10 - MAX_BLOCKS * BLOCK_TOKENS
