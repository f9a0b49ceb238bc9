"""The engine as a real process behind ProcessEngineClient: starts, dies, hangs, stops."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from tests.support.local_engine import TINY_LIMITS, Answer, LocalEngine, make_request
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.events import Completed, EngineEvent, Failed, FailureReason
from tokenwire_service.core.params import LogprobsParams, SamplingParams
from tokenwire_service.engine.client import EngineState, RequestStream
from tokenwire_service.engine.process_client import ProcessEngineClient, RestartPolicy
from tokenwire_service.errors import EngineDownError, ModelLoadingError, StartupError, WeightsError
from tokenwire_service.runner.worker import Worker
from tokenwire_service.weights.resolved import ResolvedModel

FAST_RESTARTS = RestartPolicy(max_restarts=1, first_delay_s=0.01)


@contextlib.asynccontextmanager
async def running_engine(
    model: ResolvedModel, config: EngineConfig = TINY_LIMITS
) -> AsyncIterator[ProcessEngineClient]:
    client = ProcessEngineClient(model, "float32", config, restarts=FAST_RESTARTS)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


async def read_all(stream: RequestStream) -> Answer:
    events: list[EngineEvent] = []
    while not events or not isinstance(events[-1], Completed | Failed):
        events.extend(await stream.take())
    return Answer(events)


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what it waits for tells nobody
        await asyncio.sleep(0.005)


def num_open_sockets() -> int:
    """Of this process."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            count += str(entry.readlink()).startswith("socket:")
    return count


def is_gone(pid: int) -> bool:
    """No process and no zombie of that id."""
    return not Path(f"/proc/{pid}").exists()


async def test_a_life_over_the_wire(tiny_model: ResolvedModel, tiny_worker: Worker) -> None:
    sockets_before = num_open_sockets()
    phases: list[tuple[str, float]] = []
    client = ProcessEngineClient(tiny_model, "float32", TINY_LIMITS, on_load=lambda *at: phases.append(at))
    with pytest.raises(ModelLoadingError):
        client.submit(make_request("early", [5]))
    with pytest.raises(RuntimeError, match="ready"):
        _ = client.info
    starting = asyncio.create_task(client.start())
    assert await client.wait_state_change(EngineState.LOADING) is EngineState.READY
    await starting
    assert phases[0][1] == 0.0
    assert phases[-1][1] == 1.0
    info = client.info
    assert (info.dtype, info.num_blocks, info.max_total_tokens) == ("float32", 128, 256)
    assert (info.max_batch_size, info.max_batch_prefill_tokens) == (16, 48)

    # The same id many times over: what callers choose is theirs.
    requests = [
        make_request(
            "same", range(3, 10 + number), 20, sampling=SamplingParams(seed=number), logprobs=LogprobsParams(1)
        )
        for number in range(20)
    ]
    answers = await asyncio.gather(*(read_all(client.submit(request)) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        assert isinstance(answer.end, Completed)
        assert answer.end.request_id == "same"
        local = LocalEngine(tiny_worker).run(request)["same"]
        assert answer.tokens == local.tokens
        told = [token.logprob for token in answer.logprobs[0]]
        assert told == pytest.approx([token.logprob for token in local.logprobs[0]], abs=1e-4)

    closed = client.submit(make_request("closed", [5, 6], 200))
    await closed.take()
    closed.close()
    closed.close()
    assert list(await closed.take()) == []
    aborted = client.submit(make_request("aborted", [5, 6], 200))
    await aborted.take()
    assert client.abort(["aborted", "unknown"]) == 1
    end = (await read_all(aborted)).end
    assert isinstance(end, Failed)
    assert end.reason is FailureReason.ABORTED_BY_OPERATOR
    assert client.abort([]) == 0

    early = client.submit(make_request("early", [5, 6], 200, num_candidates=2))
    await early.take()
    for index in (0, 1, 1):
        early.finish_candidate(index)
    assert isinstance((await read_all(early)).end, Completed)
    early.finish_candidate(0)

    client.flush_cache()
    await wait_until(lambda: client.stats.num_free_blocks == 128 and client.stats.num_cached_blocks == 0)
    assert (client.stats.num_running, client.stats.num_waiting) == (0, 0)

    pid = client.pid
    assert pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert isinstance((await read_all(client.submit(make_request("after", [7], 3)))).end, Completed)

    unfinished = client.submit(make_request("unfinished", [5, 6], 200))
    await unfinished.take()
    await client.close()
    await client.close()
    await client.wait_stopped()
    assert client.state is EngineState.DOWN
    assert is_gone(pid)
    end = (await read_all(unfinished)).end
    assert isinstance(end, Failed)
    assert end.reason is FailureReason.DRAINING
    assert num_open_sockets() == sockets_before


async def test_a_killed_engine_ends_its_streams_and_comes_back_until_it_will_not(tiny_model: ResolvedModel) -> None:
    async with running_engine(tiny_model) as client:
        first = client.pid
        assert first is not None
        stream = client.submit(make_request("a", [5, 6], 200))
        await stream.take()
        os.kill(first, signal.SIGKILL)
        end = (await read_all(stream)).end
        assert isinstance(end, Failed)
        assert end.reason is FailureReason.ENGINE_DOWN
        assert client.state is EngineState.DOWN
        with pytest.raises(EngineDownError):
            client.submit(make_request("b", [5]))
        assert await client.wait_state_change(EngineState.DOWN) is EngineState.READY
        assert client.pid != first
        assert is_gone(first)
        assert isinstance((await read_all(client.submit(make_request("c", [5, 6], 4)))).end, Completed)

        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(StartupError, match=r"signal 9 \(Killed\); .* memory ran out"):
            await client.wait_stopped()
        assert client.state is EngineState.DOWN


async def test_a_hung_engine_is_ended_and_started_again(tiny_model: ResolvedModel) -> None:
    async with running_engine(tiny_model, dataclasses.replace(TINY_LIMITS, step_timeout_s=0.5)) as client:
        pid = client.pid
        assert pid is not None
        await asyncio.sleep(0.7)  # idle for longer than that is no hang
        assert client.state is EngineState.READY
        begun = client.submit(make_request("a", [5, 6], 200))
        await begun.take()
        os.kill(pid, signal.SIGSTOP)
        not_begun = client.submit(make_request("b", [5, 6], 4))
        end = (await read_all(begun)).end
        assert isinstance(end, Failed)
        assert end.reason is FailureReason.ENGINE_DOWN
        answer = await read_all(not_begun)
        assert isinstance(answer.end, Completed)
        assert answer.end.queue_time_s > 0.5
        assert client.state is EngineState.READY
        assert is_gone(pid)


async def test_bad_weights_end_the_start_with_their_line(tiny_model: ResolvedModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny_model.weight_files[0].read_bytes()[:-1000])
    broken = dataclasses.replace(tiny_model, weight_files=(path,))
    client = ProcessEngineClient(broken, "float32", TINY_LIMITS)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        await client.start()
    with pytest.raises(WeightsError):
        await client.wait_stopped()
    await client.close()
    assert client.pid is None


@pytest.mark.parametrize(("level", "lines"), [("info", 1), ("error", 0)])
async def test_the_engine_logs_as_it_is_told(
    tiny_model: ResolvedModel, capfd: pytest.CaptureFixture[str], level: str, lines: int
) -> None:
    client = ProcessEngineClient(tiny_model, "bfloat16", TINY_LIMITS, log_level=level, json_output=True)
    await client.start()
    await client.close()
    entries = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert len(entries) == lines
    for entry in entries:
        assert (entry["level"], entry["logger"]) == ("info", "tokenwire_service.runner.worker")
        assert "bfloat16" in entry["message"]


async def test_closing_while_loading(tiny_model: ResolvedModel) -> None:
    client = ProcessEngineClient(tiny_model, "float32", TINY_LIMITS)
    starting = asyncio.create_task(client.start())
    await wait_until(lambda: client.pid is not None)
    pid = client.pid
    assert pid is not None
    await client.close()
    with pytest.raises(StartupError, match="closed before"):
        await starting
    assert is_gone(pid)


def test_on_uvloop(tiny_model: ResolvedModel) -> None:
    async def use() -> None:
        async with running_engine(tiny_model) as client:
            answer = await read_all(client.submit(make_request("a", range(3, 40), 30)))
            assert len(answer.tokens[0]) == 30

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(use())


async def test_the_engine_ends_with_its_parent(tiny_model: ResolvedModel, tmp_path: Path) -> None:
    """A frontend that is killed leaves no engine behind."""
    program = f"""
import asyncio
from pathlib import Path
from tests.support.local_engine import TINY_LIMITS, resolved_from
from tokenwire_service.engine.process_client import ProcessEngineClient
async def main():
    directory = Path({tiny_model.model_id!r})
    client = ProcessEngineClient(resolved_from(directory, {dict(tiny_model.config)!r}), "float32", TINY_LIMITS)
    await client.start()
    print(client.pid, flush=True)
    await asyncio.sleep(100)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    started = time.monotonic()
    await wait_until(lambda: is_gone(pid) or _is_zombie(pid) or time.monotonic() - started > 20)
    assert is_gone(pid) or _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Ended; whoever inherited it has not asked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
