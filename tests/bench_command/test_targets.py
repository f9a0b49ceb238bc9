"""The command against real servers: ours over gRPC, the gateway before it, and one that is nobody's."""

import asyncio
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.support.fake_engine import FakeEngine, FakeStream
from tests.support.http_server import http_answer, serving
from tests.support.rpc import Door, open_door
from tokenwire_gateway.config import GatewayConfig
from tokenwire_gateway.server import make_server
from tokenwire_service.bench_command.command import chars_per_token, open_target
from tokenwire_service.bench_command.prompts import Job
from tokenwire_service.bench_command.settings import Endpoint
from tokenwire_service.bench_command.target import Answer, Target
from tokenwire_service.cli import app
from tokenwire_service.core.events import FailureReason, FinishReason
from tokenwire_service.errors import StartupError


async def say_all(stream: FakeStream) -> None:
    """A letter at a time, as many as asked for."""
    stream.admit(cached_prompt_tokens=2)
    for left in range(stream.request.stopping.max_tokens, 0, -1):
        stream.tokens(b"a", finish=FinishReason.MAX_TOKENS if left == 1 else None)
        await asyncio.sleep(0.001)


@asynccontextmanager
async def gateway(door: Door, **config: object) -> AsyncIterator[str]:
    """A gateway before the door; its URL."""
    server = make_server(GatewayConfig(target=door.address, hostname="127.0.0.1", port=0, **config))  # type: ignore[arg-type]
    serving_task = asyncio.ensure_future(server._serve())
    for _ in range(2_000):
        if server.started:
            break
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving_task


async def ask(target: Target, output_tokens: int = 5) -> Answer:
    answer = Answer(Job("hello there", 11, output_tokens), 0.0)
    await target.ask(answer)
    return answer


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("rest", [False, True])
async def test_an_answer_is_measured_token_by_token(api: str, rest: bool) -> None:
    async with open_door(FakeEngine(say_all)) as door, gateway(door) as url:
        target = open_target(Endpoint(url if rest else door.address, api))
        await target.prepare()
        assert "bytes" in target.description
        answer = await ask(target)
        assert (answer.error, answer.output_tokens, answer.cached_tokens) == ("", 5, 2)
        assert answer.prompt_tokens == await target.count_tokens("hello there") > 0
        assert 2 <= len(answer.token_times) <= 5
        assert answer.token_times == sorted(answer.token_times)
        await target.close()


@pytest.mark.parametrize("rest", [False, True])
async def test_a_refusal_is_told_by_its_reason(rest: bool) -> None:
    async def refuse(stream: FakeStream) -> None:
        stream.fail(FailureReason.QUEUE_FULL)

    async with open_door(FakeEngine(say_all)) as door, gateway(door) as url:
        target = open_target(Endpoint(url if rest else door.address))
        await target.prepare()
        door.engine.script = refuse
        answer = await ask(target)
        assert answer.error == ("HTTP 429" if rest else "QUEUE_FULL")
        assert answer.message
        await target.close()


@pytest.mark.parametrize("rest", [False, True])
async def test_a_failure_in_the_middle_is_an_error(rest: bool) -> None:
    async def break_off(stream: FakeStream) -> None:
        stream.admit()
        stream.tokens(b"ab")
        await asyncio.sleep(0.05)
        stream.fail(FailureReason.ENGINE_DOWN)

    async with open_door(FakeEngine(say_all)) as door, gateway(door) as url:
        target = open_target(Endpoint(url if rest else door.address))
        await target.prepare()
        door.engine.script = break_off
        answer = await ask(target)
        assert answer.error == ("STREAM_ERROR" if rest else "ENGINE_DOWN")
        assert len(answer.token_times) == 1
        await target.close()


@pytest.mark.parametrize("rest", [False, True])
async def test_a_key_is_sent_and_a_wrong_one_told(rest: bool) -> None:
    async with open_door(FakeEngine(say_all), api_key="key") as door, gateway(door, api_key="key") as url:
        where = url if rest else door.address
        good = open_target(Endpoint(where, api_key="key"))
        await good.prepare()
        assert not (await ask(good)).error
        await good.close()
        bad = open_target(Endpoint(where, api_key="other"))
        with pytest.raises(StartupError, match="--target"):
            await bad.prepare()
        await bad.close()


async def test_text_is_measured_by_the_servers_own_count() -> None:
    async with open_door(FakeEngine(say_all)) as door:
        target = open_target(Endpoint(door.address))
        # Tokens are bytes here, and a few pairs of them.
        assert 1.0 < await chars_per_token(target) < 1.2
        await target.close()


SSE = ("Transfer-Encoding: chunked", "Content-Type: text/event-stream")


def chunked(*lines: bytes) -> bytes:
    whole = b"".join(line + b"\n\n" for line in lines)
    return http_answer(b"%x\r\n%b\r\n0\r\n\r\n" % (len(whole), whole), *SSE)


def plain(body: object, status: str = "200 OK") -> bytes:
    raw = json.dumps(body).encode()
    return http_answer(raw, f"Content-Length: {len(raw)}", status=status)


async def test_a_server_that_does_not_know_ignore_eos_is_not_asked_for_it() -> None:
    models = plain({"data": [{"id": "m"}]})
    unknown = plain({"error": {"message": "Unrecognized argument: ignore_eos"}}, "400 Bad Request")
    said = chunked(b'data: {"choices":[{"text":"x"}]}', b'data: {"usage":{"prompt_tokens":3,"completion_tokens":1}}')
    async with serving(models, unknown, said) as (url, seen):
        target = open_target(Endpoint(url + "/v1"))
        await target.prepare()
        answer = await ask(target)
        await target.close()
    assert (answer.error, answer.prompt_tokens, len(answer.token_times)) == ("", 3, 1)
    assert "answers may end early" in target.description
    assert seen[0].startswith(b"GET /v1/models ")
    assert b'"ignore_eos": true' in seen[1]
    assert b"ignore_eos" not in seen[2]


@pytest.mark.parametrize(
    ("answered", "error"),
    [
        (chunked(b"data: {", b"data: [DONE]"), "MALFORMED"),
        (chunked(b'data: {"choices":[{"text":"x"}]}', b"data: [DONE]"), "INCOMPLETE"),
        (chunked(b'data: {"choices":[]}', b'data: {"error":"no"}'), "STREAM_ERROR"),
        (plain({"error": {"message": "busy"}}, "503 Busy"), "HTTP 503"),
        (b"nonsense\r\n\r\n", "CONNECTION"),
    ],
)
async def test_bad_answers_of_other_servers_have_names(answered: bytes, error: str) -> None:
    async with serving(answered) as (url, _):
        target = open_target(Endpoint(url, model="m"), ignore_eos=False)
        await target.prepare()
        assert (await ask(target)).error == error
        await target.close()


async def test_a_server_that_never_answers_runs_into_the_timeout() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\n") as (url, _):
        target = open_target(Endpoint(url, model="m", timeout_s=0.1), ignore_eos=False)
        assert (await ask(target)).error == "TIMEOUT"
        await target.close()


async def invoke(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["bench", *arguments])


async def test_the_command_prints_a_table_and_writes_figures_and_charts(tmp_path: Path) -> None:
    figures, charts = tmp_path / "out.json", tmp_path / "out.svg"
    flags = ["--concurrency", "1,3", "--requests", "6", "--output-tokens", "4", "--prompt-tokens", "30"]
    async with open_door(FakeEngine(say_all)) as door:
        files = ["--json", str(figures), "--plot", str(charts)]
        result = await invoke("--target", door.address, "--workload", "fixed", *flags, *files, "--slo-ttft-ms", "60000")
    assert result.exit_code == 0, result.output
    assert "3 at once · 6 requests" in result.stdout
    assert "goodput" in result.stdout
    rows = json.loads(figures.read_text())["rows"]
    assert [(row["load"], row["completed"], row["output_tokens"]) for row in rows] == [
        ("1 at once", 6, 4.0),
        ("3 at once", 6, 4.0),
    ]
    assert rows[0]["prompt_tokens"] == pytest.approx(30, rel=0.2)
    ElementTree.parse(charts)


async def test_the_command_fails_when_nothing_was_answered() -> None:
    async def refuse(stream: FakeStream) -> None:
        stream.fail(FailureReason.QUEUE_FULL)

    async with open_door(FakeEngine(refuse)) as door:
        flags = ["--requests", "2", "--rate", "100", "--prompt-tokens", "20", "--output-tokens", "4"]
        result = await invoke("--target", door.address, *flags)
    assert result.exit_code == 1
    assert "QUEUE_FULL        2 times" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--target", "http://127.0.0.1:1"], 1, "--target http://127.0.0.1:1: cannot connect"),
        (["--rate", "x"], 2, "--rate 'x': give a number"),
        (["--plot", "/nowhere/at/all.svg"], 1, "there is no directory /nowhere/at"),
    ],
)
async def test_what_is_wrong_is_one_line(arguments: list[str], code: int, told: str) -> None:
    result = await invoke(*arguments)
    assert result.exit_code == code
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
