"""Random traffic through the scheduler and an emulated KV store: nobody's tokens may depend on anybody else."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from tests.support.scheduler_world import World
from tests.support.scheduling import VOCAB_SIZE, make_limits, make_request
from tokenwire_service.core.events import Completed, Failed, FailureReason, FinishReason
from tokenwire_service.core.params import Request


@dataclass(frozen=True)
class Traffic:
    """Chances per request, and sizes."""

    cancel: float = 0.0
    finish_early: float = 0.0
    deadline: float = 0.0
    time_limit: float = 0.0
    abort: float = 0.0
    max_candidates: int = 1
    bypass: float = 0.0
    prompt_logprobs: float = 0.0
    repeats: float = 0.0
    max_prompt: int = 40
    max_tokens: int = 20


PREFIXES = tuple(tuple((7 * i + 3 * j) % VOCAB_SIZE for j in range(30)) for i in range(3))


def random_request(rng: random.Random, name: str, now: float, traffic: Traffic) -> Request:
    prefix = rng.choice(PREFIXES)[: rng.randrange(31)]
    tail = tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 10)))

    def soon(chance: float) -> float | None:
        return rng.uniform(0.0, 30.0) if rng.random() < chance else None

    top_k = rng.randint(1, 4) if rng.random() < traffic.repeats else 0
    deadline, queue_deadline = soon(traffic.deadline), soon(traffic.deadline)
    return make_request(
        name,
        (prefix + tail)[: traffic.max_prompt],
        rng.randint(1, traffic.max_tokens),
        stop_token_ids=frozenset(rng.sample(range(VOCAB_SIZE), rng.choice((0, 0, 2)))) | ({3} if top_k else set()),
        context_limited=rng.random() < 0.3,
        time_limit_s=soon(traffic.time_limit),
        seed=rng.randrange(4),
        num_candidates=rng.randint(1, traffic.max_candidates),
        prompt_logprobs=rng.random() < traffic.prompt_logprobs,
        priority=rng.choice((-5, 0, 0, 0, 5)),
        arrival_time=now,
        deadline=None if deadline is None else now + deadline,
        queue_deadline=None if queue_deadline is None else now + queue_deadline,
        salt=rng.choice(("", "", "alice", "bob")),
        bypass=rng.random() < traffic.bypass,
        top_k=top_k,
    )


def disturb(world: World, rng: random.Random, traffic: Traffic) -> None:
    live = world.scheduler.request_ids()
    if not live:
        return
    name = rng.choice(live)
    if rng.random() < traffic.cancel:
        world.cancel(name)
    elif rng.random() < traffic.abort:
        world.abort(name)
    elif rng.random() < traffic.finish_early:
        world.finish_candidate(name, rng.randrange(world.requests[name].num_candidates))


def simulate(world: World, rng: random.Random, traffic: Traffic, num_requests: int) -> None:
    """Arrivals in bursts, a step a second, disturbances and cache flushes between steps."""
    num_added = 0
    while num_added < num_requests or world.scheduler.has_work():
        world.now += 1.0
        for _ in range(rng.choice((0, 0, 1, 1, 4))):
            if num_added < num_requests:
                world.add(random_request(rng, f"r{num_added}", world.now, traffic))
                num_added += 1
        disturb(world, rng, traffic)
        if rng.random() < 0.01:
            world.scheduler.flush_cache()
        world.step()
        assert len(world.outputs) < 100 * num_requests, "work does not end"
    while world.in_flight:
        world.update()


DISTURBED = Traffic(
    cancel=0.1,
    finish_early=0.15,
    abort=0.03,
    deadline=0.3,
    time_limit=0.2,
    max_candidates=4,
    bypass=0.15,
    prompt_logprobs=0.2,
)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("num_blocks", "block_size", "num_slots", "budget"),
    [(20, 4, 8, 16), (64, 4, 8, 64), (15, 4, 3, 5), (70, 1, 6, 13), (5, 16, 4, 1000)],
)
@pytest.mark.parametrize("seed", range(3))
def test_tokens_equal_those_alone(
    seed: int, num_blocks: int, block_size: int, num_slots: int, budget: int, depth: int
) -> None:
    rng = random.Random(f"{seed} {num_blocks} {depth}")
    world = World(make_limits(num_blocks, block_size, num_slots, budget, max_total_tokens=60), depth)
    simulate(world, rng, DISTURBED, num_requests=60)
    world.assert_transcripts()
    world.assert_idle()


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_tiny_pool_preempts_and_changes_no_token(depth: int, prefix_caching: bool) -> None:
    rng = random.Random(depth)
    world = World(make_limits(16, 4, 8, 32, 60, prefix_caching), depth)
    simulate(world, rng, Traffic(max_candidates=3, prompt_logprobs=0.2, max_prompt=12, max_tokens=40), 80)
    world.assert_transcripts()
    world.assert_idle()
    assert world.scheduler.stats().preemptions > 20
    assert all(isinstance(transcript.ending, Completed) for transcript in world.transcripts.values())
    assert (world.scheduler.stats().prefix_hit_tokens > 0) == prefix_caching


@pytest.mark.parametrize("num_layers", [0, 5])
@pytest.mark.parametrize("depth", [1, 2])
def test_five_hundred_starts_cancels_and_deadlines_leave_nothing_behind(depth: int, num_layers: int) -> None:
    rng = random.Random(500 + depth)
    world = World(make_limits(48, 4, 8, 12, 60, max_decode_slowdown=1.5, num_layers=num_layers), depth)
    traffic = Traffic(cancel=0.5, deadline=0.6, time_limit=0.2, abort=0.1, finish_early=0.2, max_candidates=3)
    simulate(world, rng, traffic, num_requests=500)
    world.assert_transcripts()
    world.assert_idle()
    reasons = {t.ending.reason for t in world.transcripts.values() if isinstance(t.ending, Failed)}
    assert reasons == {
        FailureReason.DEADLINE_EXCEEDED,
        FailureReason.QUEUE_TIMEOUT,
        FailureReason.ABORTED_BY_OPERATOR,
    }
    finishes = {finish.reason for t in world.transcripts.values() for finish in t.finishes.values()}
    assert finishes >= {FinishReason.TIME_LIMIT, FinishReason.MAX_TOKENS, FinishReason.STOP}
    assert len(world.cancelled) > 50
    by_layers = [row for output in world.outputs for row in output.scheduled if row.layers is not None]
    assert bool(by_layers) == bool(num_layers)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("num_blocks", "block_size", "num_slots", "budget", "num_draft_tokens", "draft_max_batch"),
    [(20, 4, 4, 24, 4, 4), (64, 2, 8, 64, 7, 3), (16, 4, 3, 5, 2, 3), (70, 1, 6, 13, 1, 6), (40, 4, 2, 300, 20, 2)],
)
def test_guesses_change_no_token(
    num_blocks: int,
    block_size: int,
    num_slots: int,
    budget: int,
    num_draft_tokens: int,
    draft_max_batch: int,
    depth: int,
) -> None:
    """Texts of few tokens: guesses hold about as often as not, and stop tokens come in the midst of them."""
    rng = random.Random(f"drafts {num_blocks} {depth}")
    limits = make_limits(
        num_blocks,
        block_size,
        num_slots,
        budget,
        max_total_tokens=60,
        num_draft_tokens=num_draft_tokens,
        draft_max_batch=draft_max_batch,
    )
    world = World(limits, depth)
    simulate(world, rng, replace(DISTURBED, repeats=0.8, max_tokens=40, max_prompt=20), num_requests=150)
    world.assert_transcripts()
    world.assert_idle()
    stats = world.scheduler.stats()
    assert 20 < stats.accepted_draft_tokens < stats.draft_tokens
    assert sum(finish.reason is FinishReason.STOP for t in world.transcripts.values() for finish in t.finishes.values())


def test_guesses_in_a_tiny_pool_preempt_no_more_than_their_sequences_would() -> None:
    preemptions = {}
    for num_draft_tokens in (0, 6):
        limits = make_limits(16, 4, 4, 32, 60, num_draft_tokens=num_draft_tokens)
        world = World(limits)
        simulate(world, random.Random(5), Traffic(repeats=1.0, max_prompt=12, max_tokens=40), 80)
        world.assert_transcripts()
        world.assert_idle()
        preemptions[num_draft_tokens] = world.scheduler.stats().preemptions
        assert bool(world.scheduler.stats().accepted_draft_tokens) == bool(num_draft_tokens)
    assert 0 < preemptions[6] <= preemptions[0]


def test_the_same_traffic_makes_the_same_plans() -> None:
    outputs = []
    for _ in range(2):
        world = World(make_limits(20, 4, 8, 16, 60, num_draft_tokens=3), depth=2, check=False)
        simulate(world, random.Random(7), replace(DISTURBED, repeats=0.5), num_requests=60)
        outputs.append(world.outputs)
    assert outputs[0] == outputs[1]


def test_low_priority_is_late_but_not_starved() -> None:
    """A steady stream of high priority takes the one slot; the low one runs once it has aged past the newcomers."""
    world = World(make_limits(max_num_sequences=1, ageing_interval_s=5.0))
    world.add(make_request("low", max_tokens=2, priority=0, arrival_time=0.0))
    for i in range(100):
        world.now = float(i)
        world.add(make_request(f"high{i}", max_tokens=2, priority=3, arrival_time=world.now))
        world.step()
        if world.transcripts["low"].admitted is not None:
            break
    # Those that arrive in the first (3 - 0 + 1) intervals may overtake: 20 of them, two steps each.
    admitted = world.transcripts["low"].admitted
    assert admitted is not None
    assert 20.0 <= admitted.queue_time_s <= 41.0
