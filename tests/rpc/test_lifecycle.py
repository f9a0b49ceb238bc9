"""Every call ends once, for whatever reason, and the engine's work with it."""

import asyncio
import contextlib
import logging
import random
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support.fake_engine import FakeEngine, FakeStream, end_at_once
from tests.support.rpc import Door, load, open_door, prompt, read, refusal, served_model
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc
from tokenwire_service.core.events import FailureReason, FinishReason
from tokenwire_service.engine.client import EngineState
from tokenwire_service.rpc.model import ModelLimits


async def admit_and_wait(stream: FakeStream) -> None:
    stream.admit()


async def one_token_at_a_time(stream: FakeStream) -> None:
    stream.admit()
    while stream.live:
        stream.tokens([97])
        await asyncio.sleep(0.001)


async def failed(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)


async def eventually(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


async def test_cancelling_at_the_fifth_token_ends_the_work() -> None:
    async with open_door(FakeEngine(one_token_at_a_time)) as door:
        call = door.generation.GenerateStream(prompt())
        num_tokens = 0
        while num_tokens < 5:
            num_tokens += (await call.read()).delta.token_count
        call.cancel()
        [stream] = door.engine.streams
        await stream.wait_closed()
        await eventually(lambda: door.server.requests_in_flight == 0)


async def test_a_client_that_vanishes_ends_the_work() -> None:
    async with open_door(FakeEngine(one_token_at_a_time)) as door:
        async with grpc.aio.insecure_channel(door.address) as channel:
            call = pb_grpc.TextGenerationServiceStub(channel).GenerateStream(prompt())
            await call.read()
        await door.engine.streams[0].wait_closed()
        await eventually(lambda: door.server.requests_in_flight == 0)


async def test_cancelling_a_unary_call_ends_the_work() -> None:
    async with open_door(FakeEngine(admit_and_wait)) as door:
        call = door.generation.Generate(prompt())
        waiting = asyncio.ensure_future(call)  # type: ignore[arg-type]
        await eventually(lambda: door.engine.streams)
        call.cancel()
        await door.engine.streams[0].wait_closed()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_nothing_is_committed_before_the_engine_admits() -> None:
    admitted = asyncio.Event()

    async def script(stream: FakeStream) -> None:
        await admitted.wait()
        await end_at_once(stream)

    async with open_door(FakeEngine(script)) as door:
        call = door.generation.GenerateStream(prompt())
        headers = asyncio.ensure_future(call.initial_metadata())
        await eventually(lambda: door.engine.streams)
        await asyncio.sleep(0.05)
        assert not headers.done()
        admitted.set()
        assert (await read(call)).of("started")
        assert await headers


async def test_the_callers_deadline_reaches_the_engine_and_ends_the_work() -> None:
    async with open_door(FakeEngine(admit_and_wait)) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(door.generation.GenerateStream(prompt(), timeout=0.2))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        [stream] = door.engine.streams
        await stream.wait_closed()
        assert stream.request.deadline is not None
        assert stream.request.deadline - stream.request.arrival_time <= 1.0


async def test_the_servers_own_limit_is_told_with_what_was_generated() -> None:
    async def script(stream: FakeStream) -> None:
        stream.admit()
        stream.tokens([97, 98, 99])
        stream.fail(FailureReason.DEADLINE_EXCEEDED)

    async with open_door(FakeEngine(script), max_time_limit_s=5.0) as door:
        found = await failed(read(door.generation.GenerateStream(prompt())))
        deadline = door.engine.streams[0].request.deadline
        assert deadline is not None
        assert deadline - door.engine.streams[0].request.arrival_time == 5.0
    assert (found.code, found.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert found.metadata["generatedTokens"] == "3"


FAILURES = {
    FailureReason.QUEUE_TIMEOUT: (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_TIMEOUT"),
    FailureReason.QUEUE_FULL: (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    FailureReason.ABORTED_BY_OPERATOR: (grpc.StatusCode.ABORTED, "ABORTED_BY_OPERATOR"),
    FailureReason.ENGINE_FAILURE: (grpc.StatusCode.INTERNAL, "ENGINE_FAILURE"),
    FailureReason.ENGINE_DOWN: (grpc.StatusCode.UNAVAILABLE, "ENGINE_DOWN"),
    FailureReason.DRAINING: (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
}


@pytest.mark.parametrize("reason", FAILURES)
async def test_each_failure_of_the_engine_has_its_status(reason: FailureReason) -> None:
    async def script(stream: FakeStream) -> None:
        stream.admit()
        stream.tokens([97])
        stream.fail(reason, "secret insides")

    async with open_door(FakeEngine(script)) as door:
        for call in (door.generation.Generate(prompt()), read(door.generation.GenerateStream(prompt()))):
            found = await failed(call)
            assert (found.code, found.reason) == FAILURES[reason]
            assert "secret" not in found.message
            retried = found.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
            assert ("RetryInfo" in found.details) == retried
            assert ("grpc-retry-pushback-ms" in found.trailers) == (found.code is grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert all(stream.closed for stream in door.engine.streams)


async def test_every_failure_reason_is_tried_here() -> None:
    assert set(FAILURES) | {FailureReason.DEADLINE_EXCEEDED} == set(FailureReason)


async def test_a_failure_after_the_last_candidate_ended_changes_nothing() -> None:
    async def script(stream: FakeStream) -> None:
        stream.admit()
        stream.tokens(b"a!", finish=None)
        stream.fail(FailureReason.ENGINE_DOWN)

    async with open_door(FakeEngine(script)) as door:
        whole = await door.generation.Generate(prompt(stopping={"stop": ["!"]}))
    assert whole.candidates[0].text == "a"


async def test_a_fault_of_ours_tells_no_insides(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeEngine):
        def submit(self, request: Any) -> FakeStream:
            raise ValueError("secret insides")

    async with open_door(Broken()) as door:
        found = await failed(door.generation.Generate(prompt(), metadata=(("x-request-id", "me-1"),)))
        assert door.server.requests_in_flight == 0
    assert (found.code, found.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_FAILURE")
    assert "secret" not in found.message
    assert "me-1" in found.message
    assert "secret insides" in caplog.text


async def test_more_requests_than_the_door_takes_are_refused_with_a_time_to_retry() -> None:
    async with open_door(FakeEngine(admit_and_wait), max_concurrent_requests=2) as door:
        first = [door.generation.GenerateStream(prompt()) for _ in range(2)]
        for call in first:
            await call.read()
        found = await failed(door.generation.Generate(prompt()))
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        delay = found.details["RetryInfo"].retry_delay.ToMilliseconds()
        assert delay > 0
        assert int(found.trailers["grpc-retry-pushback-ms"]) >= delay
        for call in first:
            call.cancel()
        await eventually(lambda: door.server.requests_in_flight == 0)
        door.engine.script = end_at_once
        assert (await door.generation.Generate(prompt())).candidates


async def test_bad_requests_take_no_place() -> None:
    async with open_door(FakeEngine(admit_and_wait), max_concurrent_requests=1) as door:
        call = door.generation.GenerateStream(prompt())
        await call.read()
        assert (await failed(door.generation.Generate(prompt(text="")))).reason == "INVALID_PARAMETER"
        call.cancel()


async def test_waiting_prompt_tokens_are_bounded() -> None:
    waiting = asyncio.Event()

    async def script(stream: FakeStream) -> None:
        await waiting.wait()
        await end_at_once(stream)

    limits = ModelLimits(256, 200, 4, 4, 32, 5, max_queue_tokens=50)
    async with open_door(FakeEngine(script), served_model(limits=limits)) as door:
        large = asyncio.ensure_future(read(door.generation.GenerateStream(prompt(text="x" * 100))))
        await eventually(lambda: door.engine.streams)
        assert (await failed(door.generation.Generate(prompt()))).reason == "QUEUE_FULL"
        waiting.set()
        assert (await large).of("completed")
        assert (await door.generation.Generate(prompt())).candidates


async def test_loading_draining_and_a_dead_engine_are_told_apart() -> None:
    async with open_door(loaded=False) as door:
        found = await failed(door.generation.Generate(prompt()))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING")
        assert "RetryInfo" in found.details
        load(door.serving, door.engine, door.model)
        assert (await door.generation.Generate(prompt())).candidates
        door.engine.set_state(EngineState.DOWN)
        assert (await failed(door.generation.Generate(prompt()))).reason == "ENGINE_DOWN"
        door.engine.set_state(EngineState.READY)
        assert (await door.generation.Generate(prompt())).candidates


async def test_a_drain_lets_streams_finish_and_refuses_new_ones() -> None:
    go_on = asyncio.Event()

    async def script(stream: FakeStream) -> None:
        stream.admit()
        await go_on.wait()
        stream.tokens([97], finish=FinishReason.MAX_TOKENS)

    async with open_door(FakeEngine(script), lame_duck_s=0.0) as door:
        running = door.generation.GenerateStream(prompt())
        await running.read()
        drained = asyncio.ensure_future(door.server.drain(30.0))
        await asyncio.sleep(0)
        found = await failed(door.generation.Generate(prompt()))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert not drained.done()
        go_on.set()
        assert (await read(running)).of("completed")
        await drained


async def test_a_drain_ends_what_outlives_the_grace() -> None:
    async with open_door(FakeEngine(admit_and_wait)) as door:
        stream, unary = door.generation.GenerateStream(prompt()), door.generation.Generate(prompt())
        await stream.read()
        await eventually(lambda: len(door.engine.streams) == 2)
        drained = asyncio.ensure_future(door.server.drain(0.05))
        for call in (read(stream), unary):
            found = await failed(call)
            assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        await drained
        assert all(stream.closed for stream in door.engine.streams)


async def test_a_lame_duck_still_takes_calls() -> None:
    async with open_door(lame_duck_s=30.0) as door:
        drained = asyncio.ensure_future(door.server.drain())
        await asyncio.sleep(0)
        assert (await door.generation.Generate(prompt())).candidates
        drained.cancel()


SMALL_WINDOW = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]


def long_pieces(stop: asyncio.Event) -> Any:
    async def script(stream: FakeStream) -> None:
        stream.admit()
        while stream.live and not stop.is_set():
            stream.tokens([97] * 500)
            await asyncio.sleep(0.002)
        stream.tokens([98], finish=FinishReason.MAX_TOKENS)

    return script


async def test_a_slow_reader_gets_larger_deltas_and_holds_nothing_up() -> None:
    stop = asyncio.Event()
    async with open_door(FakeEngine(long_pieces(stop)), options=SMALL_WINDOW) as door:
        call = door.generation.GenerateStream(prompt(stopping={"max_tokens": 200}))
        await call.read()
        await eventually(lambda: door.engine.streams)
        [stream] = door.engine.streams
        # Nobody reads: the writes fill the window, then takes stop while the engine goes on.
        taken = -1
        while taken != stream.num_takes:
            taken = stream.num_takes
            await asyncio.sleep(0.05)
        door.engine.script = end_at_once
        assert (await door.generation.Generate(prompt())).candidates
        stop.set()
        streamed = await read(call)
    sizes = [delta.token_count for delta in streamed.of("delta")]
    assert max(sizes) > 500 * 2
    assert streamed.of("completed")[0].usage.completion_tokens == sum(sizes)
    assert streamed.text() == "a" * (sum(sizes) - 1) + "b"


async def test_a_reader_that_takes_nothing_is_ended() -> None:
    stop = asyncio.Event()
    async with open_door(FakeEngine(long_pieces(stop)), options=SMALL_WINDOW, write_stall_timeout_s=0.2) as door:
        call = door.generation.GenerateStream(prompt())
        await call.read()
        await door.engine.streams[0].wait_closed()
        await eventually(lambda: door.server.requests_in_flight == 0)
        found = await failed(read(call))
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SHED")


async def test_each_call_leaves_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tokenwire_service.access")
    async with open_door() as door:
        fields = {"user": "eve\nrpc forged", "labels": {"a b": "c"}, "cache": {"session_id": "s"}}
        await door.generation.Generate(prompt(**fields), metadata=(("x-request-id", "mine"),))
        await failed(door.generation.Generate(prompt(text="")))
        await door.generation.Generate(prompt(), metadata=(("x-request-id", "bad id"),))
    lines = [record for record in caplog.records if record.name == "tokenwire_service.access"]
    good, bad = vars(lines[0]), vars(lines[1])
    assert (good["method"], good["code"]) == ("tokenwire.v1.TextGenerationService/Generate", "OK")
    assert (good["request_id"], good["prompt_tokens"], good["completion_tokens"]) == ("mine", 3, 1)
    assert good["response_id"].startswith("tw-")
    assert "\n" not in good["user"]
    assert (bad["code"], bad["reason"]) == ("INVALID_ARGUMENT", "INVALID_PARAMETER")
    assert " " not in vars(lines[2])["request_id"]
    assert len(lines) == 3


async def test_queue_limits_of_a_request_reach_the_engine() -> None:
    async with open_door() as door:
        await door.generation.Generate(prompt(scheduling={"max_queue_time": Duration(seconds=1)}))
    request = door.engine.streams[0].request
    assert request.queue_deadline == request.arrival_time + 1


async def test_many_ends_of_every_kind_leave_nothing_behind() -> None:
    chance = random.Random(7)

    async def one(door: Door) -> None:
        call = door.generation.GenerateStream(prompt(), timeout=chance.choice([None, 0.02]))
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            for _ in range(chance.randrange(6)):
                await call.read()
        call.cancel()

    async with open_door(FakeEngine(one_token_at_a_time), max_concurrent_requests=16) as door:
        await asyncio.gather(*(one(door) for _ in range(150)))
        await eventually(lambda: door.server.requests_in_flight == 0)
        assert all(stream.closed for stream in door.engine.streams)
        door.engine.script = end_at_once
        assert (await door.generation.Generate(prompt())).candidates
