"""What is tried again, how often, and what never is."""

from __future__ import annotations

import asyncio
import time

import pytest
from grpc import StatusCode

import tokenwire_client as tw
from tests.support.generation_samples import TEXT, generate_events, generate_response
from tests.support.scripted_server import fail, respond
from tokenwire.v1.models_pb2 import GetModelResponse
from tokenwire.v1.tokenization_pb2 import TokenizeResponse
from tokenwire_client.calls import MAX_RETRY_DELAY_S

FULL = fail(StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=0.01)
DOWN = fail(StatusCode.UNAVAILABLE, "ENGINE_DOWN", retry_after=0.01)


@pytest.mark.parametrize("failure", [FULL, DOWN], ids=["full", "down"])
async def test_a_unary_call_gets_through_after_failures(server, connect, failure) -> None:
    server.script("Generate", failure, failure, respond(generate_response()))
    assert (await connect(server.target)("generate", "hi")).text == TEXT
    assert len(server.attempts["Generate"]) == 3


@pytest.mark.parametrize("failure", [FULL, DOWN], ids=["full", "down"])
async def test_a_stream_gets_through_after_failures_before_its_first_event(server, connect, failure) -> None:
    server.script("GenerateStream", failure, failure, respond(*generate_events()))
    assert (await connect(server.target).result("generate_stream", "hi")).text == TEXT
    assert len(server.attempts["GenerateStream"]) == 3


@pytest.mark.parametrize("failure", [FULL, DOWN], ids=["full", "down"])
@pytest.mark.parametrize(("max_retries", "attempts"), [(0, 1), (1, 2), (3, 4)])
async def test_attempts_are_counted(server, connect, failure, max_retries, attempts) -> None:
    server.script("Generate", failure)
    server.script("GenerateStream", failure)
    client = connect(server.target, max_retries=max_retries)
    with pytest.raises((tw.QueueFull, tw.EngineDown)):
        await client("generate", "hi")
    assert len(server.attempts["Generate"]) == attempts
    if failure is FULL:
        with pytest.raises(tw.QueueFull):
            await client.result("generate_stream", "hi")
        assert len(server.attempts["GenerateStream"]) == attempts


async def test_tokenization_and_models_are_tried_again(server, connect) -> None:
    server.script("Tokenize", DOWN, respond(TokenizeResponse(token_count=3)))
    server.script("GetModel", DOWN, respond(GetModelResponse()))
    client = connect(server.target)
    assert await client("count_tokens", "hi") == 3
    await client("get_model")
    assert (len(server.attempts["Tokenize"]), len(server.attempts["GetModel"])) == (2, 2)


@pytest.mark.parametrize(
    "failure",
    [
        fail(StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
        fail(StatusCode.RESOURCE_EXHAUSTED),
        fail(StatusCode.RESOURCE_EXHAUSTED, "QUEUE_TIMEOUT", retry_after=0.01),
        fail(StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_after=MAX_RETRY_DELAY_S + 1),
        fail(StatusCode.INTERNAL, "ENGINE_FAILURE", retry_after=0.01),
        fail(StatusCode.ABORTED, "ABORTED_BY_OPERATOR", retry_after=0.01),
        fail(StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER", retry_after=0.01),
    ],
    ids=["no RetryInfo", "no ErrorInfo", "own limit", "too far away", "internal", "aborted", "bad request"],
)
async def test_other_failures_are_final(server, connect, failure) -> None:
    server.script("Generate", failure)
    server.script("GenerateStream", failure)
    client = connect(server.target)
    with pytest.raises(tw.TokenwireError):
        await client("generate", "hi")
    with pytest.raises(tw.TokenwireError):
        await client.events("generate_stream", "hi")
    assert (len(server.attempts["Generate"]), len(server.attempts["GenerateStream"])) == (1, 1)


@pytest.mark.parametrize("code", [StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE], ids=lambda code: code.name)
async def test_nothing_is_tried_again_after_the_first_event(server, connect, code) -> None:
    reason = "SHED" if code is StatusCode.RESOURCE_EXHAUSTED else "ENGINE_DOWN"
    after = tuple(generate_events()[:1])
    server.script("GenerateStream", fail(code, reason, retry_after=0.01, after=after), respond(*generate_events()))
    with pytest.raises(tw.TokenwireError) as caught:
        await connect(server.target).events("generate_stream", "hi")
    assert caught.value.reason == reason
    assert len(server.attempts["GenerateStream"]) == 1


async def test_the_deadline_bounds_all_attempts(server, connect) -> None:
    """A pause that does not fit into what is left is not begun: the server's own error comes back, and at once."""
    server.script("Generate", fail(StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=20.0))
    begun = time.monotonic()
    with pytest.raises(tw.QueueFull) as caught:
        await connect(server.target)("generate", "hi", timeout=15.0)
    assert caught.value.retry_after == 20.0
    assert time.monotonic() - begun < 15.0
    assert len(server.attempts["Generate"]) == 1


async def test_later_attempts_have_less_time_left(server, connect) -> None:
    pause = fail(StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=0.5)
    server.script("Generate", pause, respond(generate_response()))
    # gRPC sends timeouts under ten seconds to the hundredth, longer ones rounded to seconds.
    await connect(server.target)("generate", "hi", timeout=8.0)
    first, second = (attempt.time_remaining for attempt in server.attempts["Generate"])
    assert second < first - 0.3


async def test_attempts_share_the_request_id_and_ask_for_the_token_anew(server, connect) -> None:
    tokens = iter(["old", "new"])
    server.script("Generate", FULL, respond(generate_response()))
    await connect(server.target, token=lambda: next(tokens))("generate", "hi", request_id="r-9")
    seen = [(a.metadata["x-request-id"], a.metadata["authorization"]) for a in server.attempts["Generate"]]
    assert seen == [("r-9", "Bearer old"), ("r-9", "Bearer new")]


async def test_cancelling_ends_the_pause_between_attempts(server) -> None:
    server.script("GenerateStream", fail(StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=25.0))
    async with tw.AsyncClient(server.target, timeout=None) as client:
        stream = client.generate_stream("hi")
        reading = asyncio.create_task(stream.result())
        await server.asked.wait()
        await asyncio.sleep(0.05)
        stream.cancel()
        with pytest.raises(tw.Cancelled):
            await asyncio.wait_for(reading, 10)
