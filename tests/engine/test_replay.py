"""An engine goes down: requests that it had not begun go to the next one, the others end."""

import asyncio
import errno
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.acting_clients import acting, failure_of, num_processes, read_all, tokens_of, wait_until
from tests.support.acting_engine import UNSUPPORTED, Part, play
from tokenwire_service.core.events import Completed, FailureReason, FinishReason, TokensGenerated
from tokenwire_service.engine.client import EngineState
from tokenwire_service.engine.delivery import MAX_REPLAYS
from tokenwire_service.engine.process_client import ProcessEngineClient, RestartPolicy
from tokenwire_service.errors import EngineDownError, StartupError

SLOW_RESTARTS = RestartPolicy(first_delay_s=30.0)
"""Nothing comes back while a test looks."""


async def kill(client: ProcessEngineClient) -> None:
    """Once the engine has everything, and until it is known to be down."""
    await wait_until(lambda: client.stats.num_waiting == client.num_live)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    assert await client.wait_state_change(EngineState.READY) is EngineState.DOWN


async def test_what_was_not_begun_is_answered_by_the_next_engine_in_its_order(tmp_path: Path) -> None:
    async with acting(tmp_path) as client:
        waiting = [client.submit(play(Part.WAIT, 1, request_id="same")) for _ in range(5)]
        begun = client.submit(play(Part.BEGIN))
        await begun.take()
        await kill(client)
        assert await failure_of(begun) is FailureReason.ENGINE_DOWN
        with pytest.raises(EngineDownError):
            client.submit(play(Part.ANSWER))
        assert client.stats.num_waiting == 0
        assert [await tokens_of(stream) for stream in waiting] == [[2, place] for place in range(5)]
        assert client.num_live == 0


async def test_an_event_nobody_took_yet_is_a_beginning_too(tmp_path: Path) -> None:
    async with acting(tmp_path) as client:
        begun = client.submit(play(Part.BEGIN))
        await wait_until(lambda: client.stats.num_waiting == 1)
        await kill(client)
        assert await failure_of(begun) is FailureReason.ENGINE_DOWN


async def test_order_holds_over_several_deaths(tmp_path: Path) -> None:
    async with acting(tmp_path) as client:
        first = client.submit(play(Part.WAIT, 2))
        await kill(client)
        await client.wait_state_change(EngineState.DOWN)
        second = client.submit(play(Part.WAIT, 2))
        await kill(client)
        assert [await tokens_of(first), await tokens_of(second)] == [[3, 0], [3, 1]]


async def test_times_run_out_while_there_is_no_engine(tmp_path: Path) -> None:
    async with acting(tmp_path, restarts=SLOW_RESTARTS) as client:
        soon = time.monotonic() + 0.5
        expiring = client.submit(play(Part.WAIT, 1, deadline=soon, queue_deadline=soon + 100))
        impatient = client.submit(play(Part.WAIT, 1, deadline=soon + 100, queue_deadline=soon))
        limited = client.submit(play(Part.WAIT, 1, time_limit_s=0.5, num_candidates=2))
        await kill(client)
        assert await failure_of(expiring) is FailureReason.DEADLINE_EXCEEDED
        assert await failure_of(impatient) is FailureReason.QUEUE_TIMEOUT
        events = await read_all(limited)
        finishes = [event.finish for event in events if isinstance(event, TokensGenerated)]
        assert [finish.reason for finish in finishes if finish] == [FinishReason.TIME_LIMIT] * 2
        assert isinstance(events[-1], Completed)
        assert events[-1].total_time_s >= 0.5
        assert client.state is EngineState.DOWN


async def test_who_leaves_while_there_is_no_engine_is_not_replayed(tmp_path: Path) -> None:
    async with acting(tmp_path) as client:
        closed, aborted, told, kept = (client.submit(play(Part.WAIT, 1, request_id=name)) for name in "abtk")
        assert client.abort(["t"]) == 1
        await kill(client)
        assert await failure_of(told) is FailureReason.ABORTED_BY_OPERATOR
        closed.close()
        assert client.abort(["b", "unknown"]) == 1
        assert await failure_of(aborted) is FailureReason.ABORTED_BY_OPERATOR
        assert await tokens_of(kept) == [2, 0]
        assert client.abort([]) == 0


async def test_a_request_that_brings_engines_down_does_not_go_round_for_ever(tmp_path: Path) -> None:
    async with acting(tmp_path) as client:
        assert await failure_of(client.submit(play(Part.DIE))) is FailureReason.ENGINE_DOWN
        await client.wait_state_change(EngineState.DOWN)
        number = MAX_REPLAYS + 2
        assert await tokens_of(client.submit(play(Part.ANSWER))) == [number, 0]


async def test_all_fail_when_the_engine_does_not_come_back(tmp_path: Path) -> None:
    async with acting(tmp_path, restarts=RestartPolicy(max_restarts=0)) as client:
        waiting = client.submit(play(Part.WAIT, 9))
        await kill(client)
        assert await failure_of(waiting) is FailureReason.ENGINE_DOWN
        with pytest.raises(StartupError, match="signal 9"):
            await client.wait_stopped()


async def test_a_process_that_cannot_be_started_again_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with acting(tmp_path) as client:
        waiting = client.submit(play(Part.WAIT, 1))
        start, failures = subprocess.Popen, [OSError(errno.EAGAIN, "no process left"), OSError(errno.ENOMEM, "full")]

        def popen(*arguments: Any, **options: Any) -> Any:
            if failures:
                raise failures.pop()
            return start(*arguments, **options)

        monkeypatch.setattr(subprocess, "Popen", popen)
        await kill(client)
        assert await tokens_of(waiting) == [2, 0]
    assert "cannot be started: full" in caplog.text


async def test_a_load_that_fails_is_tried_again_once_there_was_an_engine(tmp_path: Path) -> None:
    """What made it fail, memory of the one before that is not free yet, may be gone then."""
    async with acting(tmp_path) as client:
        waiting = client.submit(play(Part.WAIT, 1))
        (tmp_path / UNSUPPORTED).touch()
        await kill(client)
        await wait_until(lambda: num_processes(tmp_path) == 3)
        (tmp_path / UNSUPPORTED).unlink()
        assert (await tokens_of(waiting))[0] > 2


async def test_closing_ends_those_that_wait(tmp_path: Path) -> None:
    async with acting(tmp_path, restarts=SLOW_RESTARTS) as client:
        waiting = client.submit(play(Part.WAIT, 9))
        await kill(client)
        await client.close()
        assert await failure_of(waiting) is FailureReason.DRAINING


async def test_a_candidate_that_ended_early_stays_ended(tmp_path: Path) -> None:
    async with acting(tmp_path) as client:
        waiting = client.submit(play(Part.WAIT, 1))
        waiting.finish_candidate(0)
        await kill(client)
        waiting.finish_candidate(0)
        assert await tokens_of(waiting) == []


async def test_a_reader_that_is_told_hears_of_the_replay(tmp_path: Path) -> None:
    async with acting(tmp_path) as client:
        waiting, told = client.submit(play(Part.WAIT, 1)), asyncio.Event()
        waiting.notify(told.set)
        await kill(client)
        await told.wait()
        assert await tokens_of(waiting) == [2, 0]
