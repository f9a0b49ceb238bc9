"""The frontend's benchmark: an engine that computes nothing, a client that parses nothing, and the count between."""

import asyncio
import os
import sys
from contextlib import closing

import pytest

from bench import bare_server, frontend
from bench.mock_engine import MockEngine
from bench.wire_client import Connection, GrpcStreams, RestStream, StreamEndedError, Tally
from tests.support.fake_engine import FakeEngine, FakeStream
from tests.support.rpc import open_door, prompt
from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire.v1 import text_generation_pb2 as messages
from tokenwire_service.core.events import Admitted, Completed, FinishReason, TokensGenerated
from tokenwire_service.engine.event_codec import events_from_pb


def submission(key: int, max_tokens: int) -> pb.Submission:
    return pb.Submission(key=key, prompt_token_ids=[1, 2, 3], stopping=pb.Stopping(max_tokens=max_tokens))


def test_every_running_request_gets_a_token_a_step() -> None:
    engine = MockEngine()
    assert engine.step() is None
    assert engine.take(pb.FrontendMessage(submissions=[submission(7, 2), submission(8, 9)]))
    steps = []
    for _ in range(2):
        message = engine.step()
        assert message is not None
        steps.append([event for _, event in events_from_pb(message.step, {7: "seven", 8: "eight"})])
    first, second = steps
    assert [(type(event), event.request_id) for event in first] == [
        (Admitted, "seven"),
        (Admitted, "eight"),
        (TokensGenerated, "seven"),
        (TokensGenerated, "eight"),
    ]
    ended = [event for event in second if event.request_id == "seven"]
    assert isinstance(ended[0], TokensGenerated)
    assert ended[0].finish is not None
    assert ended[0].finish.reason is FinishReason.MAX_TOKENS
    assert isinstance(ended[1], Completed)
    assert (ended[1].prompt_tokens, ended[1].completion_tokens) == (3, 2)
    assert engine.take(pb.FrontendMessage(closed_keys=[8]))
    assert engine.step() is None
    assert not engine.take(pb.FrontendMessage(stop=True))


async def read_to_the_end(connection: Connection) -> None:
    with closing(connection):
        while True:
            connection.read()
            await asyncio.sleep(0.005)


async def test_the_wire_client_counts_the_tokens_of_a_real_server() -> None:
    async def talk(stream: FakeStream) -> None:
        stream.admit()
        for _ in range(20):
            stream.tokens(b"a")
            await asyncio.sleep(0.002)
        stream.tokens(b"b", finish=FinishReason.MAX_TOKENS)

    async with open_door(FakeEngine(talk)) as door:
        tally, port = Tally(), door.server.port
        method, request = frontend.GENERATE_STREAM, prompt().SerializeToString()
        streams = GrpcStreams(port, method, request, tally, 3, num_tokens=frontend._num_tokens)
        with pytest.raises(StreamEndedError):
            await read_to_the_end(streams)
    # Of three streams, when the first of them ended; deltas may come merged.
    assert 21 <= tally.tokens <= 63


async def test_a_rest_client_counts_events_until_the_connection_ends() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
        assert b"Content-Length: 2\r\n" in head
        assert await reader.readexactly(2) == b"{}"
        writer.write(b'data: {"a": 1}\n\ndata: {"b": 2}\n\ndata: [DONE]\n\n')
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        tally = Tally()
        stream = RestStream(server.sockets[0].getsockname()[1], b"{}", tally)
        with pytest.raises(StreamEndedError):
            await read_to_the_end(stream)
    assert tally.tokens == 2


def test_cpu_time_of_a_process_grows_with_its_work() -> None:
    before = frontend.cpu_seconds(os.getpid())
    sum(range(2_000_000))
    assert frontend.cpu_seconds(os.getpid()) > before


def test_the_cost_of_grpc_alone_is_a_figure() -> None:
    load = frontend.Load(streams=2, step_ms=5.0, seconds=0.5)
    row = next(iter(frontend.run(load, with_rest=False)))
    assert row["path"] == "grpc.aio alone"
    assert row["tokens_per_s"] > 20
    assert 1 < row["server_us_per_token"] < 100_000


def test_the_cost_of_an_engine_that_is_not_paced_is_a_figure() -> None:
    load = frontend.Load(streams=2, step_ms=frontend.UNPACED_MS, seconds=0.5)
    (row,) = frontend.run(load, with_rest=True)
    assert (row["path"], row["connections"]) == ("gRPC", 1)
    assert row["tokens_per_s"] > 20
    assert row["server_us_per_token"] > 0


async def test_tokens_of_a_merged_message_are_all_counted() -> None:
    message = messages.GenerateStreamResponse(delta=messages.TextDelta(text="one two three", token_count=3))
    raw = message.SerializeToString()
    frame = b"\x00" + len(raw).to_bytes(4, "big") + raw

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"bench")
        writer.write(len(frame).to_bytes(3, "big") + b"\x00\x00" + (1).to_bytes(4, "big") + frame)
        writer.write(b"\x00\x00\x00\x07" + bytes(5))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        tally = Tally()
        (streams,) = frontend.grpc_streams(server.sockets[0].getsockname()[1], frontend.Load(streams=1), tally)
        with pytest.raises(StreamEndedError):
            await read_to_the_end(streams)
    assert tally.tokens == 3


def test_merged_chunks_of_the_adapter_are_no_result() -> None:
    load = frontend.Load(streams=64, step_ms=6.0)
    assert frontend._paced(load, {"tokens_per_s": 10_600.0}) == {"tokens_per_s": 10_600.0}
    with pytest.raises(RuntimeError, match="--step-ms"):
        frontend._paced(load, {"tokens_per_s": 9_000.0})


@pytest.mark.parametrize("module", [bare_server.__name__, "bench.frontend", "bench.serving"])
async def test_what_runs_as_a_command_imports(module: str) -> None:
    code = f"import {module}"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
