"""When an engine is taken for hung, and what is left of it."""

import asyncio
import dataclasses
import os
import signal
from pathlib import Path

import pytest
import uvloop

from tests.support.acting_clients import acting, acting_client, failure_of, is_over, tokens_of, wait_until
from tests.support.acting_engine import INFO, Part, play
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.events import FailureReason
from tokenwire_service.engine.client import EngineState
from tokenwire_service.engine.vigil import LONGEST_LOOK_S, Vigil, step_timeout_s

SILENCE_S = 8.0


def looked(vigil: Vigil, seconds: float, *, working: bool = False, since: float = 0.0) -> str | None:
    """What looks every quarter of a second say in the end."""
    wrong = None
    for quarter in range(1, int(seconds * 4) + 1):
        wrong = vigil.look(since + quarter / 4, working=working)
    return wrong


def test_a_silent_process_is_hung() -> None:
    vigil = Vigil(SILENCE_S, 0.0)
    vigil.alive(0)
    assert looked(vigil, SILENCE_S) is None
    assert "no sign of life for 8.2 s" in str(vigil.look(SILENCE_S + 0.25, working=False))
    vigil.heard()
    assert vigil.look(SILENCE_S + 0.5, working=False) is None


def test_one_that_never_promised_to_speak_may_be_silent() -> None:
    assert looked(Vigil(SILENCE_S, 0.0), 1000) is None


def test_work_without_steps_is_a_hang_whatever_is_heard() -> None:
    vigil = Vigil(SILENCE_S, 0.0)
    vigil.alive(0)
    vigil.step_timeout_s = 9.0
    assert looked(vigil, 100, working=False) is not None
    vigil.heard()
    for quarter in range(1, 37):
        vigil.heard()
        assert vigil.look(100 + quarter / 4, working=True) is None
    vigil.heard()
    assert "made no progress for 9 s" in str(vigil.look(109.25, working=True))
    vigil.stepped()
    assert vigil.look(109.5, working=True) is None


def test_a_long_step_that_computes_is_no_hang() -> None:
    vigil = Vigil(SILENCE_S, 0.0)
    vigil.step_timeout_s = 5.0
    for second in range(100):
        vigil.heard()
        vigil.alive(second)
        assert looked(vigil, 1.0, working=True, since=second) is None
    vigil.heard()
    vigil.alive(99)
    assert looked(vigil, 4.0, working=True, since=100) is None
    assert "made no progress for 5 s" in str(looked(vigil, 0.25, working=True, since=104))


def test_idleness_before_the_work_does_not_count() -> None:
    vigil = Vigil(SILENCE_S, 0.0)
    assert looked(vigil, 1000, working=False) is None
    assert looked(vigil, 59, working=True, since=1000) is None


def test_time_in_which_nobody_looked_does_not_count() -> None:
    vigil = Vigil(SILENCE_S, 0.0)
    vigil.alive(0)
    assert vigil.look(1000.0, working=True) is None
    assert looked(vigil, SILENCE_S - LONGEST_LOOK_S, working=True, since=1000) is None


@pytest.mark.parametrize(
    ("asked", "device", "backend", "timeout"),
    [
        (0.0, "cpu", "native", 8.0),
        (0.0, "cpu", "torch", 60.0),
        (0.0, "NVIDIA H200", "triton", 8.0),
        (0.0, "NVIDIA H200", "torch", 8.0),
        (3.0, "cpu", "torch", 3.0),
        (3.0, "NVIDIA H200", "triton", 3.0),
    ],
)
def test_the_step_timeout_fits_the_engine(asked: float, device: str, backend: str, timeout: float) -> None:
    info = dataclasses.replace(INFO, device=device, attention_backend=backend)
    assert step_timeout_s(asked, info) == timeout


async def test_a_process_that_falls_silent_is_ended_with_its_ranks(tmp_path: Path) -> None:
    async with acting(tmp_path, silence_timeout_s=0.5, rank="spawned") as client:
        pid, rank = client.pid, int((tmp_path / "rank").read_text())
        begun = client.submit(play(Part.BEGIN))
        await begun.take()
        hush = client.submit(play(Part.HUSH))
        assert await failure_of(begun) is FailureReason.ENGINE_DOWN
        assert client.state is EngineState.DOWN
        hush.close()
        await client.wait_state_change(EngineState.DOWN)
        assert client.pid != pid
        assert is_over(rank)


async def test_a_stopped_process_is_ended_while_idle(tmp_path: Path) -> None:
    async with acting(tmp_path, silence_timeout_s=0.5) as client:
        assert client.pid is not None
        os.kill(client.pid, signal.SIGSTOP)
        await client.wait_state_change(EngineState.READY)
        await client.wait_state_change(EngineState.DOWN)
        assert await tokens_of(client.submit(play(Part.ANSWER))) == [2, 0]


def test_a_stopped_process_is_ended_on_uvloop(tmp_path: Path) -> None:
    async def stop_it() -> None:
        async with acting(tmp_path, silence_timeout_s=0.5) as client:
            waiting = client.submit(play(Part.WAIT, 1))
            assert client.pid is not None
            os.kill(client.pid, signal.SIGSTOP)
            assert await tokens_of(waiting) == [2, 0]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(stop_it())


async def test_work_without_steps_ends_the_process_though_it_lives(tmp_path: Path) -> None:
    config = dataclasses.replace(EngineConfig(), step_timeout_s=0.5)
    async with acting(tmp_path, config=config) as client:
        assert await tokens_of(client.submit(play(Part.WAIT, 1))) == [2, 0]


@pytest.mark.parametrize("rank", ["spawned", "forked"])
async def test_a_death_is_seen_at_once_and_leaves_nothing(tmp_path: Path, rank: str) -> None:
    """Also where a process it started holds its end of the socket. Silence would tell only after the test."""
    async with acting(tmp_path, rank=rank, silence_timeout_s=1000.0) as client:
        other = int((tmp_path / "rank").read_text())
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        assert await client.wait_state_change(EngineState.READY) is EngineState.DOWN
        await client.wait_state_change(EngineState.DOWN)
        assert is_over(other)


async def test_closing_leaves_nothing(tmp_path: Path) -> None:
    async with acting(tmp_path, rank="forked") as client:
        pid, rank = client.pid, int((tmp_path / "rank").read_text())
        assert pid is not None
    assert is_over(pid)
    await wait_until(lambda: is_over(rank))


async def test_killing_while_it_starts(tmp_path: Path) -> None:
    client = acting_client(tmp_path)
    client.kill()
    assert client.pid is None
    await client.close()
