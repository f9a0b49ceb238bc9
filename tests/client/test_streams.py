"""Streams: events as they come, text, results, and every way of leaving."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from grpc import StatusCode

import tokenwire_client as tw
from tests.support.generation_samples import (
    PIECES,
    TEXT,
    chat_events,
    chat_response,
    generate_events,
    generate_response,
)
from tests.support.scripted_server import fail, respond
from tokenwire.v1.engine_pb2 import WatchLoadResponse


async def test_events_are_the_protos_as_sent(server, connect) -> None:
    server.script("GenerateStream", respond(*generate_events()))
    assert await connect(server.target).events("generate_stream", "hi") == generate_events()


async def test_result_equals_the_unary_answer(server, connect) -> None:
    server.script("Generate", respond(generate_response()))
    server.script("GenerateStream", respond(*generate_events()))
    server.script("Chat", respond(chat_response()))
    server.script("ChatStream", respond(*chat_events()))
    client = connect(server.target)
    assert await client.result("generate_stream", "hi") == await client("generate", "hi")
    assert await client.result("chat_stream", [tw.user("hi")]) == await client("chat", [tw.user("hi")])


async def test_generation_has_shortcuts(server, connect) -> None:
    server.script("Generate", respond(generate_response()))
    answer = await connect(server.target)("generate", "hi")
    assert (answer.text, answer.finish_reason, answer.id, answer.model) == (TEXT, tw.FinishReason.STOP, "gen-1", "tiny")
    assert answer.finish_reason == "stop"
    assert [candidate.text for candidate in answer.candidates] == [TEXT, "Bye"]
    assert answer.usage.completion_tokens == 5
    assert answer.timing.total_time.nanos == 5_000_000
    assert str(answer) == TEXT


async def test_chat_answers_can_be_appended(server, connect) -> None:
    server.script("Chat", respond(chat_response()))
    client = connect(server.target)
    history = [tw.system("Be brief."), tw.user("hi")]
    answer = await client("chat", history)
    assert (answer.text, answer.reasoning, answer.finish_reason) == (TEXT, "I greet.", tw.FinishReason.TOOL_CALLS)
    assert [call.name for call in answer.tool_calls] == ["wave", "nod"]
    await client("chat", [*history, answer.message, tw.tool_result("call-1", "done")])
    assert server.attempts["Chat"][1].request.messages[2] == answer.message


async def test_text_of_a_stream(server) -> None:
    server.script("GenerateStream", respond(*generate_events()))
    server.script("ChatStream", respond(*chat_events()))
    async with tw.AsyncClient(server.target) as client:
        assert [piece async for piece in client.generate_stream("hi").text] == list(PIECES)
        assert [piece async for piece in client.generate_stream("hi").text_stream(1)] == ["Bye"]
        assert [piece async for piece in client.chat_stream([tw.user("hi")]).text] == list(PIECES)

    def read() -> None:
        with tw.Client(server.target) as client:
            assert list(client.generate_stream("hi").text) == list(PIECES)
            assert list(client.generate_stream("hi").text_stream(1)) == ["Bye"]
            assert list(client.chat_stream([tw.user("hi")]).text) == list(PIECES)

    await asyncio.to_thread(read)


async def test_one_event_can_be_taken_before_the_rest(server) -> None:
    server.script("GenerateStream", respond(*generate_events()))
    async with tw.AsyncClient(server.target) as client:
        stream = client.generate_stream("hi")
        assert (await anext(stream)).HasField("started")
        assert [event async for event in stream] == generate_events()[1:]
        assert (await stream.result()).text == TEXT

    def read() -> None:
        with tw.Client(server.target) as client, client.generate_stream("hi") as stream:
            assert next(stream).HasField("started")
            assert list(stream) == generate_events()[1:]
            assert stream.result().text == TEXT

    await asyncio.to_thread(read)


async def test_a_failing_stream_keeps_what_arrived(server, connect) -> None:
    after = tuple(generate_events()[:3])
    server.script("GenerateStream", fail(StatusCode.INTERNAL, "ENGINE_FAILURE", after=after))
    client = connect(server.target)
    with pytest.raises(tw.Internal) as caught:
        await client.result("generate_stream", "hi")
    partial = caught.value.partial
    assert isinstance(partial, tw.Generation)
    assert partial.text == PIECES[0] + PIECES[1]
    assert partial.id == "gen-1"
    assert partial.finish_reason is tw.FinishReason.UNSPECIFIED
    assert (partial.usage.prompt_tokens, partial.usage.completion_tokens) == (3, 2)

    after = tuple(chat_events()[:5])
    server.script("ChatStream", fail(StatusCode.ABORTED, "ABORTED_BY_OPERATOR", after=after))
    with pytest.raises(tw.Aborted) as caught:
        await client.result("chat_stream", [tw.user("hi")])
    assert isinstance(caught.value.partial, tw.ChatCompletion)
    assert (caught.value.partial.reasoning, caught.value.partial.text) == ("I greet.", PIECES[0] + PIECES[1])


async def test_a_failed_stream_fails_again(server) -> None:
    server.script("GenerateStream", fail(StatusCode.INTERNAL, "ENGINE_FAILURE", after=tuple(generate_events()[:2])))
    async with tw.AsyncClient(server.target) as client:
        stream = client.generate_stream("hi")
        with pytest.raises(tw.Internal):
            await stream.result()
        with pytest.raises(tw.Internal):
            await stream.result()
    assert len(server.attempts["GenerateStream"]) == 1


async def test_a_stream_without_its_end_is_an_error(server, connect) -> None:
    server.script("GenerateStream", respond(*generate_events()[:-1]))
    with pytest.raises(tw.Internal, match="completed") as caught:
        await connect(server.target).events("generate_stream", "hi")
    assert caught.value.partial.text == TEXT


def leave_loop(stream: tw.GenerateStream) -> None:
    for event in stream:
        if event.HasField("delta"):
            break


def leave_text(stream: tw.GenerateStream) -> None:
    for _ in stream.text:
        break


def leave_context(stream: tw.GenerateStream) -> None:
    with stream:
        next(stream)


def leave_by_error(stream: tw.GenerateStream) -> None:
    try:
        for _ in stream:
            raise KeyError
    except KeyError:
        return
    raise AssertionError("the loop swallowed its error")


def cancel(stream: tw.GenerateStream) -> None:
    next(stream)
    stream.cancel()
    with pytest.raises(tw.Cancelled) as caught:
        stream.result()
    assert caught.value.partial is not None


@pytest.mark.parametrize("leave", [leave_loop, leave_text, leave_context, leave_by_error, cancel])
async def test_leaving_reaches_the_server(server, leave) -> None:
    server.script("GenerateStream", server.hang(*generate_events()[:3]))
    with tw.Client(server.target, timeout=None) as client:
        stream = client.generate_stream("hi")
        await asyncio.to_thread(leave, stream)
        await asyncio.wait_for(server.cancelled.wait(), 10)


async def test_dropping_a_stream_reaches_the_server(server) -> None:
    server.script("GenerateStream", server.hang(*generate_events()[:3]))
    with tw.Client(server.target, timeout=None) as client:
        await asyncio.to_thread(lambda: next(client.generate_stream("hi")))
        gc.collect()
        await asyncio.wait_for(server.cancelled.wait(), 10)


async def test_another_thread_may_cancel(server) -> None:
    server.script("GenerateStream", server.hang(*generate_events()[:1]))
    with tw.Client(server.target, timeout=None) as client:
        stream = client.generate_stream("hi")
        began = threading.Event()

        def read() -> None:
            next(stream)
            began.set()
            stream.result()

        reading = asyncio.create_task(asyncio.to_thread(read))
        await asyncio.to_thread(began.wait)
        stream.cancel()
        with pytest.raises(tw.Cancelled):
            await asyncio.wait_for(reading, 10)


async def aleave_loop(stream: tw.AsyncGenerateStream) -> None:
    async for event in stream:
        if event.HasField("delta"):
            break


async def aleave_text(stream: tw.AsyncGenerateStream) -> None:
    async for _ in stream.text:
        break


async def aleave_context(stream: tw.AsyncGenerateStream) -> None:
    async with stream:
        await anext(stream)


async def aleave_by_error(stream: tw.AsyncGenerateStream) -> None:
    try:
        async for _ in stream:
            raise KeyError
    except KeyError:
        return
    raise AssertionError("the loop swallowed its error")


async def acancel(stream: tw.AsyncGenerateStream) -> None:
    await anext(stream)
    stream.cancel()
    with pytest.raises(tw.Cancelled) as caught:
        await stream.result()
    assert caught.value.partial is not None


async def acancel_task(stream: tw.AsyncGenerateStream) -> None:
    await anext(stream)
    reading = asyncio.create_task(stream.result())
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    with pytest.raises(tw.Cancelled):
        await stream.result()


@pytest.mark.parametrize("leave", [aleave_loop, aleave_text, aleave_context, aleave_by_error, acancel, acancel_task])
async def test_leaving_reaches_the_server_async(server, leave) -> None:
    server.script("GenerateStream", server.hang(*generate_events()[:3]))
    async with tw.AsyncClient(server.target, timeout=None) as client:
        stream = client.generate_stream("hi")
        await leave(stream)
        await asyncio.wait_for(server.cancelled.wait(), 10)


async def test_dropping_a_stream_reaches_the_server_async(server) -> None:
    server.script("GenerateStream", server.hang(*generate_events()[:3]))
    async with tw.AsyncClient(server.target, timeout=None) as client:
        await anext(client.generate_stream("hi"))
        gc.collect()
        await asyncio.wait_for(server.cancelled.wait(), 10)


async def test_a_cancel_by_the_server_is_an_error_and_not_a_cancelled_task(server, connect) -> None:
    server.script("GenerateStream", fail(StatusCode.CANCELLED, after=tuple(generate_events()[:2])))
    with pytest.raises(tw.Cancelled) as caught:
        await connect(server.target).events("generate_stream", "hi")
    assert caught.value.partial.text == PIECES[0]


async def test_closing_the_client_ends_its_calls(server, connect) -> None:
    server.script("GenerateStream", server.hang(*generate_events()[:2]))
    server.script("Generate", server.hang())
    client = connect(server.target, timeout=None)
    streaming = asyncio.create_task(client.result("generate_stream", "hi"))
    await server.asked.wait()
    server.asked.clear()
    waiting = asyncio.create_task(client("generate", "hi"))
    await server.asked.wait()
    await client.close()
    for call in (streaming, waiting):
        with pytest.raises(tw.Cancelled):
            await asyncio.wait_for(call, 10)


async def test_a_stream_not_begun_asks_for_nothing(server) -> None:
    server.script("GenerateStream", respond(*generate_events()))
    async with tw.AsyncClient(server.target) as client:
        stream = client.generate_stream("hi")
        stream.cancel()
        with pytest.raises(tw.Cancelled):
            await stream.result()
    assert not server.attempts["GenerateStream"]


async def test_the_load_is_watched_without_end(server, connect) -> None:
    reports = [WatchLoadResponse() for _ in range(3)]
    for running, report in enumerate(reports):
        report.load.running = running
    server.script("WatchLoad", respond(*reports))
    client = connect(server.target, timeout=5.0)
    assert await client.events("watch_load", 0.25) == reports
    seen = server.attempts["WatchLoad"][0]
    assert seen.request.interval.nanos == 250_000_000
    assert seen.time_remaining is None or seen.time_remaining > 1e6
