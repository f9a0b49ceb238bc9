"""What a call carries, how long it may take, and where it may be made."""

from __future__ import annotations

import asyncio
import socket

import pytest

import tokenwire_client as tw
from tests.support.generation_samples import generate_events, generate_response
from tests.support.scripted_server import ScriptedServer, respond
from tokenwire.v1.engine_pb2 import GetLoadResponse, GetServerInfoResponse
from tokenwire.v1.models_pb2 import GetModelResponse, ListModelsResponse, Model
from tokenwire.v1.tokenization_pb2 import DetokenizeResponse, TokenizeRequest, TokenizeResponse


async def test_metadata_of_client_and_call_meet(server, connect) -> None:
    server.script("Generate", respond(generate_response()))
    client = connect(server.target, metadata={"X-Tenant": "a", "x-kept": "k"}, token="secret")
    await client("generate", "hi", metadata=[("x-tenant", "b"), ("x-blob-bin", b"\x00")], traceparent="00-1-2-01")
    seen = server.attempts["Generate"][0].metadata
    assert (seen["x-tenant"], seen["x-kept"], seen["x-blob-bin"]) == ("b", "k", b"\x00")
    assert (seen["traceparent"], seen["authorization"]) == ("00-1-2-01", "Bearer secret")
    keys = server.attempts["Generate"][0].keys
    assert len(keys) == len(set(keys))
    assert seen["user-agent"].startswith("tokenwire-client-python/")


async def test_every_call_has_a_request_id(server, connect) -> None:
    server.script("GenerateStream", respond(*generate_events()))
    client = connect(server.target, metadata={"x-request-id": "from-metadata"})
    stream = client.client.generate_stream("hi", request_id="mine")
    assert stream.request_id == "mine"
    await client.events("generate_stream", "hi", request_id="mine")
    await client.events("generate_stream", "hi")
    other = connect(server.target)
    await other.events("generate_stream", "hi")
    await other.events("generate_stream", "hi")
    ids = [attempt.metadata["x-request-id"] for attempt in server.attempts["GenerateStream"]]
    assert ids[:2] == ["mine", "from-metadata"]
    assert len({*ids}) == 4
    assert all(ids)


async def test_tokens_come_from_texts_and_functions(server, connect) -> None:
    server.script("Generate", respond(generate_response()))
    await connect(server.target, token=lambda: "made")("generate", "hi")
    await connect(server.target)("generate", "hi")
    await connect(server.target, token="client")("generate", "hi", metadata={"authorization": "Bearer caller"})
    seen = [attempt.metadata.get("authorization") for attempt in server.attempts["Generate"]]
    assert seen == ["Bearer made", None, "Bearer caller"]


async def test_async_tokens_are_awaited(server) -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return "awaited"

    server.script("Generate", respond(generate_response()))
    server.script("GenerateStream", respond(*generate_events()))
    async with tw.AsyncClient(server.target, token=token) as client:
        await client.generate("hi")
        await client.generate_stream("hi").result()
    for method in ("Generate", "GenerateStream"):
        assert server.attempts[method][0].metadata["authorization"] == "Bearer awaited"


async def test_timeouts_come_from_call_or_client(server, connect) -> None:
    server.script("Generate", respond(generate_response()))
    client = connect(server.target, timeout=50.0)
    await client("generate", "hi")
    await client("generate", "hi", timeout=5.0)
    await client("generate", "hi", timeout=None)
    by_client, by_call, endless = (attempt.time_remaining for attempt in server.attempts["Generate"])
    assert 5.0 < by_client <= 51.0
    assert by_call <= 5.1
    assert endless is None or endless > 1e6


async def test_a_timeout_ends_the_call(server, connect) -> None:
    server.script("Generate", server.hang())
    server.script("GenerateStream", server.hang(*generate_events()[:2]))
    client = connect(server.target)
    with pytest.raises(tw.DeadlineExceeded):
        await client("generate", "hi", timeout=0.2)
    with pytest.raises(tw.DeadlineExceeded) as caught:
        await client.events("generate_stream", "hi", timeout=0.4)
    assert caught.value.partial is not None
    await asyncio.wait_for(server.cancelled.wait(), 10)


@pytest.mark.parametrize("timeout", [0, -1])
async def test_a_timeout_must_be_positive(server, connect, timeout) -> None:
    with pytest.raises(ValueError, match="timeout"):
        await connect(server.target)("generate", "hi", timeout=timeout)


async def test_a_whole_request_goes_as_it_is(server, connect) -> None:
    request = tw.GenerateRequest(text="hi", model="m")
    request.stopping.max_tokens = 5
    server.script("Generate", respond(generate_response()))
    client = connect(server.target)
    await client("generate", request, timeout=5.0)
    assert server.attempts["Generate"][0].request == request
    with pytest.raises(TypeError, match="max_tokens"):
        await client("generate", request, max_tokens=5)


async def test_tokenization(server, connect) -> None:
    server.script("Tokenize", respond(TokenizeResponse(token_count=2, token_ids=[4, 5])))
    server.script("Detokenize", respond(DetokenizeResponse(text="hi")))
    client = connect(server.target)
    assert list((await client("tokenize", "hi", model="m", offsets=True, add_special_tokens=False)).token_ids) == [4, 5]
    assert await client("count_tokens", [tw.user("hi")], add_generation_prompt=False) == 2
    assert await client("detokenize", [4, 5], skip_special_tokens=False) == "hi"
    text, chat = (attempt.request for attempt in server.attempts["Tokenize"])
    assert (text.text, text.model, text.offsets, text.add_special_tokens) == ("hi", "m", True, False)
    assert not text.HasField("count_only")
    assert list(chat.chat.messages) == [tw.user("hi")]
    assert chat.chat.HasField("add_generation_prompt")
    assert (chat.chat.add_generation_prompt, chat.count_only) == (False, True)
    assert server.attempts["Detokenize"][0].request.HasField("skip_special_tokens")


async def test_counting_leaves_the_callers_request_alone(server, connect) -> None:
    request = TokenizeRequest(text="hi")
    server.script("Tokenize", respond(TokenizeResponse(token_count=2)))
    assert await connect(server.target)("count_tokens", request) == 2
    assert request == TokenizeRequest(text="hi")
    assert server.attempts["Tokenize"][0].request == TokenizeRequest(text="hi", count_only=True)


async def test_models_come_from_all_pages(server, connect) -> None:
    first = ListModelsResponse(models=[Model(name="a"), Model(name="b")], next_page_token="2")
    server.script("ListModels", respond(first), respond(ListModelsResponse(models=[Model(name="c")])))
    server.script("GetModel", respond(GetModelResponse(model=Model(name="b"))))
    client = connect(server.target)
    assert [model.name for model in await client("list_models")] == ["a", "b", "c"]
    assert [attempt.request.page_token for attempt in server.attempts["ListModels"]] == ["", "2"]
    assert (await client("get_model", "b")).name == "b"
    assert server.attempts["GetModel"][0].request.model == "b"


async def test_the_server_tells_about_itself(server, connect) -> None:
    response = GetLoadResponse()
    response.load.running = 3
    server.script("GetServerInfo", respond(GetServerInfoResponse(version="1.2")))
    server.script("GetLoad", respond(response))
    client = connect(server.target)
    assert (await client("server_info")).version == "1.2"
    assert (await client("load")).running == 3


async def test_a_unix_socket_is_a_target(connect, tmp_path) -> None:
    server = ScriptedServer()
    await server.start(f"unix:{tmp_path}/s")
    server.script("Generate", respond(generate_response()))
    assert (await connect(server.target)("generate", "hi")).id == "gen-1"
    await server.stop()


@pytest.mark.parametrize("target", ["", "http://localhost:50051", "https://x", "grpc://x"])
@pytest.mark.parametrize("kind", [tw.Client, tw.AsyncClient])
def test_a_target_is_no_url(kind, target) -> None:
    with pytest.raises(ValueError, match="target"):
        kind(target)


@pytest.mark.parametrize("kind", [tw.Client, tw.AsyncClient])
def test_retries_are_not_negative(kind) -> None:
    with pytest.raises(ValueError, match="max_retries"):
        kind(max_retries=-1)


async def test_nobody_listens(connect) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(tw.Unavailable) as caught:
            await connect(f"127.0.0.1:{bound.getsockname()[1]}", max_retries=0)("generate", "hi")
    assert caught.value.reason == ""


async def test_a_closed_client_says_so(server, connect) -> None:
    client = connect(server.target)
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client("generate", "hi")
    with pytest.raises(RuntimeError, match="closed"):
        await client.events("generate_stream", "hi")


def test_an_async_client_belongs_to_its_loop() -> None:
    client = tw.AsyncClient("127.0.0.1:1", max_retries=0)
    with asyncio.Runner() as runner, asyncio.Runner() as other:
        with pytest.raises(tw.Unavailable):
            runner.run(client.generate("hi"))
        with pytest.raises(RuntimeError, match="event loop"):
            other.run(client.generate("hi"))
        runner.run(client.close())


async def test_a_client_does_not_survive_a_fork(server, monkeypatch) -> None:
    server.script("Generate", respond(generate_response()))
    with tw.Client(server.target) as client:
        await asyncio.to_thread(client.generate, "hi")
        monkeypatch.setattr("tokenwire_client.client.os.getpid", lambda: -1)
        with pytest.raises(RuntimeError, match="fork"):
            client.generate("hi")


async def test_threads_share_a_client(server) -> None:
    server.script("Generate", respond(generate_response()))
    with tw.Client(server.target) as client:
        answers = await asyncio.gather(*(asyncio.to_thread(client.generate, str(idx)) for idx in range(8)))
    assert {answer.id for answer in answers} == {"gen-1"}
    assert sorted(attempt.request.text for attempt in server.attempts["Generate"]) == [str(idx) for idx in range(8)]
