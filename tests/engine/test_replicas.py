"""Several engines behind one client: who takes what, and what happens when some of them go down."""

import asyncio
import contextlib
import os
import random
import signal
from pathlib import Path

import pytest

from tests.support.acting_clients import (
    LOGGER,
    acting_client,
    acting_replicas,
    failure_of,
    num_processes,
    read_all,
    tokens_of,
    wait_until,
)
from tests.support.acting_engine import INFO, UNSUPPORTED, Part, play
from tokenwire_service.core.events import (
    Admitted,
    Completed,
    EngineEvent,
    EngineStats,
    Failed,
    FailureReason,
    TokensGenerated,
)
from tokenwire_service.core.params import CacheParams
from tokenwire_service.engine.client import EngineState
from tokenwire_service.engine.process_client import LoadCallback, Overseer, ProcessEngineClient, RestartPolicy
from tokenwire_service.engine.replicas import ReplicatedEngineClient
from tokenwire_service.engine.totals import SlowestLoad, total_stats
from tokenwire_service.errors import EngineDownError, ModelLoadingError, StartupError, UnsupportedModelError

READY, DOWN = EngineState.READY, EngineState.DOWN
SLOW_RESTARTS = RestartPolicy(first_delay_s=30.0)


def states(client: ReplicatedEngineClient) -> list[EngineState]:
    return [state for _, state in client.replicas]


async def kill(client: ReplicatedEngineClient, *indexes: int) -> None:
    """Until they are known to be down."""
    for index in indexes:
        pid = client.pids[index]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: all(states(client)[index] is DOWN for index in indexes))


async def all_taken(client: ReplicatedEngineClient, num_waiting: int) -> None:
    await wait_until(lambda: client.stats.num_waiting == num_waiting)


async def test_two_share_the_work_and_tell_of_it_together(tmp_path: Path) -> None:
    async with acting_replicas(tmp_path, 2) as client:
        assert client.state is READY
        info = client.info
        assert (info.num_blocks, info.max_batch_size, info.max_total_tokens) == (200, 16, INFO.max_total_tokens)
        assert (info.max_batch_prefill_tokens, info.num_shards) == (INFO.max_batch_prefill_tokens, 1)
        waiting = [client.submit(play(Part.WAIT, 9)) for _ in range(6)]
        await all_taken(client, 6)
        await wait_until(lambda: client.stats.num_blocks == 200)
        answers = [await tokens_of(client.submit(play(Part.ANSWER))) for _ in range(4)]
        assert sorted(answers) == [[1, 3], [1, 4], [2, 3], [2, 4]]
        assert client.abort(["r"]) == 6
        for stream in waiting:
            stream.close()
        client.flush_cache()


async def test_one_that_dies_loses_what_it_began_and_nothing_else(tmp_path: Path) -> None:
    # What waits moves to the other long before a new one is there.
    async with acting_replicas(tmp_path, 2, restarts=RestartPolicy(first_delay_s=1.0)) as client:
        begun = [client.submit(play(Part.BEGIN)) for _ in range(4)]
        served = [(await stream.take()) and stream for stream in begun]
        waiting = [client.submit(play(Part.WAIT, 2)) for _ in range(4)]
        await all_taken(client, 8)
        await kill(client, 0)
        assert client.state is READY
        failed = [asyncio.create_task(failure_of(stream)) for stream in served]
        await wait_until(lambda: sum(task.done() for task in failed) == 2)
        assert {task.result() for task in failed if task.done()} == {FailureReason.ENGINE_DOWN}
        # The other has all that waits now; the new one answers once the other is gone too.
        await all_taken(client, 6)
        await wait_until(lambda: states(client) == [READY, READY])
        await kill(client, 1)
        assert client.state is READY
        assert sorted([await tokens_of(stream) for stream in waiting]) == [[3, place] for place in range(4)]
        assert {await task for task in failed} == {FailureReason.ENGINE_DOWN}


async def test_it_is_down_when_all_are_and_answers_as_soon_as_one_is_back(tmp_path: Path) -> None:
    async with acting_replicas(tmp_path, 2) as client:
        waiting = [client.submit(play(Part.WAIT, 2)) for _ in range(4)]
        await all_taken(client, 4)
        change = asyncio.create_task(client.wait_state_change(READY))
        await kill(client, 0, 1)
        assert await change is DOWN
        with pytest.raises(EngineDownError):
            client.submit(play(Part.ANSWER))
        assert await client.wait_state_change(DOWN) is READY
        answers = [await tokens_of(stream) for stream in waiting]
        first_back = answers[0][0]
        assert first_back in (3, 4)
        assert answers == [[first_back, place] for place in range(4)]


async def test_who_waits_for_any_of_them_keeps_its_times_and_may_leave(tmp_path: Path) -> None:
    async with acting_replicas(tmp_path, 2, restarts=SLOW_RESTARTS) as client:
        closed, aborted, kept = (client.submit(play(Part.WAIT, 9, request_id=name)) for name in "cak")
        await all_taken(client, 3)
        await kill(client, 0, 1)
        closed.close()
        assert client.abort(["a"]) == 1
        assert await failure_of(aborted) is FailureReason.ABORTED_BY_OPERATOR
        await client.close()
        assert await failure_of(kept) is FailureReason.DRAINING


async def test_a_request_that_brings_engines_down_stops_before_it_had_them_all_twice(tmp_path: Path) -> None:
    async with acting_replicas(tmp_path, 3) as client:
        assert await failure_of(client.submit(play(Part.DIE))) is FailureReason.ENGINE_DOWN
        await wait_until(lambda: states(client) == [READY] * 3)
        assert num_processes(tmp_path) == 6


async def test_the_set_goes_on_without_one_that_will_not_come_back_until_none_will(tmp_path: Path) -> None:
    async with acting_replicas(tmp_path, 2, restarts=RestartPolicy(max_restarts=0)) as client:
        stopped = asyncio.create_task(client.wait_stopped())
        await kill(client, 0)
        assert await tokens_of(client.submit(play(Part.ANSWER))) != []
        assert not stopped.done()
        waiting = client.submit(play(Part.WAIT, 9))
        await all_taken(client, 1)
        await kill(client, 1)
        assert await failure_of(waiting) is FailureReason.ENGINE_DOWN
        with pytest.raises(StartupError, match="signal 9"):
            await stopped


async def test_prompts_that_begin_alike_and_sessions_go_to_the_same_one(tmp_path: Path) -> None:
    async with acting_replicas(tmp_path, 2) as client:
        chance = random.Random(0)
        for _ in range(5):
            start = chance.choices(range(1000), k=200)
            numbers = {(await tokens_of(client.submit(play(Part.ANSWER, *start, end))))[0] for end in range(3)}
            assert len(numbers) == 1
            cache = CacheParams(session_id=str(start))
            numbers = {(await tokens_of(client.submit(play(Part.ANSWER, cache=cache))))[0] for _ in range(3)}
            assert len(numbers) == 1


async def test_one_that_came_back_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    async with acting_replicas(tmp_path, 2) as client:
        asked = play(Part.ANSWER, *range(200))
        assert client.submit(asked)
        assert [replica.num_live for replica in client._replicas] == [1, 0]
        await wait_until(lambda: client._replicas[0].num_live == 0)
        await kill(client, 0)
        await wait_until(lambda: states(client) == [READY, READY])
        assert client.submit(asked)
        assert [replica.num_live for replica in client._replicas] == [0, 1]


async def test_under_load_nobody_has_much_more_than_another(tmp_path: Path) -> None:
    """All begin alike, so that affinity alone would send them to one."""
    async with acting_replicas(tmp_path, 3) as client:
        start = list(range(640))
        streams = [client.submit(play(Part.WAIT, 9, *start, end, max_tokens=50)) for end in range(60)]
        weights = [replica.weight for replica in client._replicas]
        assert max(weights) - min(weights) <= 640 + 640 + 52
        assert min(replica.num_live for replica in client._replicas) >= 10
        for stream in streams:
            stream.close()
        assert [replica.weight for replica in client._replicas] == [0, 0, 0]


async def test_totals_only_grow(tmp_path: Path) -> None:
    async with acting_replicas(tmp_path, 2) as client:
        for _ in range(4):
            await tokens_of(client.submit(play(Part.ANSWER)))
        await wait_until(lambda: client.stats.generated_tokens == 4)
        await kill(client, 0)
        assert client.stats.generated_tokens == 4
        assert client.stats.num_blocks == 100
        await wait_until(lambda: client.stats.num_blocks == 200)
        assert client.stats.generated_tokens == 4


def check_story(events: list[EngineEvent]) -> None:
    """One beginning at most, one engine's tokens, one end; none that had not begun is given up after one death."""
    kinds = [type(event) for event in events]
    assert kinds.count(Admitted) <= 1
    numbers = {event.token_ids[0] for event in events if isinstance(event, TokensGenerated)}
    assert len(numbers) <= 1
    assert [kind for kind in kinds if kind in (Completed, Failed)] == kinds[-1:]
    if isinstance(events[-1], Failed):
        assert events[-1].reason is FailureReason.ENGINE_DOWN
    assert kinds[0] is Admitted


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_dies_every_request_ends_once(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    restarts = RestartPolicy(max_restarts=100, first_delay_s=0.01, max_delay_s=0.01)
    async with acting_replicas(tmp_path, 3, restarts=restarts) as client:
        readers: list[asyncio.Task[list[EngineEvent]]] = []
        for _ in range(12):
            await wait_until(lambda: client.state is READY)
            for _ in range(6):
                asked = play(Part.STEPS, chance.randrange(3), max_tokens=chance.randint(1, 20))
                with contextlib.suppress(EngineDownError):
                    readers.append(asyncio.create_task(read_all(client.submit(asked))))
                await asyncio.sleep(chance.random() * 0.01)
            victims = [pid for pid in client.pids if pid is not None]
            for pid in chance.sample(victims, min(len(victims), chance.choice([1, 1, 1, 3]))):
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(chance.random() * 0.1)
        stories = await asyncio.gather(*readers)
        await wait_until(lambda: client.state is READY)
        assert await tokens_of(client.submit(play(Part.ANSWER))) != []
        assert [(replica.weight, replica.num_live) for replica in client._replicas] == [(0, 0)] * 3
        assert len(client._room) == 0
    for story in stories:
        check_story(story)


async def test_one_that_cannot_load_ends_the_start(tmp_path: Path) -> None:
    def make(index: int, overseer: Overseer, on_load: LoadCallback) -> ProcessEngineClient:
        if index == 0:
            return acting_client(tmp_path, overseer=overseer)
        return acting_client(tmp_path, overseer=overseer, rank=UNSUPPORTED)

    client = ReplicatedEngineClient(2, make, logger=LOGGER)
    with pytest.raises(ModelLoadingError):
        client.submit(play(Part.ANSWER))
    with pytest.raises(UnsupportedModelError):
        await client.start()
    await client.close()
    assert client.pids == (None, None)
    assert client.state is DOWN


def test_progress_is_that_of_the_slowest() -> None:
    told: list[tuple[str, float]] = []
    loads = SlowestLoad(2, lambda phase, fraction: told.append((phase, fraction)))
    loads.heard(0, "weights", 0.5)
    loads.heard(1, "weights", 0.2)
    loads.heard(1, "weights", 0.8)
    loads.heard(0, "weights", 1.0)
    loads.heard(0, "warm-up", 0.0)
    loads.heard(1, "weights", 1.0)
    loads.heard(1, "warm-up", 0.3)
    expected = [("weights", part) for part in (0.2, 0.5, 0.8, 1.0)] + [("warm-up", 0.0)]
    assert told == expected


def test_a_step_takes_the_mean_of_those_that_made_one() -> None:
    total = total_stats([EngineStats(step_time_s=0.2), EngineStats(step_time_s=0.4), EngineStats()])
    assert total.step_time_s == pytest.approx(0.3)
