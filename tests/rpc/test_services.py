"""TokenizationService, ModelService and EngineService on the wire."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.fake_engine import FakeEngine, FakeStream
from tests.support.rpc import Door, open_door, prompt, read, refusal, served_model
from tests.support.stack import free_port
from tokenwire.v1 import (
    engine_pb2,
    engine_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    tokenization_pb2,
    tokenization_pb2_grpc,
)
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire_service.core.events import EngineStats
from tokenwire_service.rpc.load import RateMeter
from tokenwire_service.rpc.model import SamplingDefaults
from tokenwire_service.rpc.prompts import MAX_CHARS

TOKENIZER = byte_tokenizer()


async def failed(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)


def user(text: str) -> pb.Message:
    return pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])


async def test_tokenize_text() -> None:
    text = "hé 🙂llo "
    async with open_door() as door:
        stub = tokenization_pb2_grpc.TokenizationServiceStub(door.channel)
        full = await stub.Tokenize(tokenization_pb2.TokenizeRequest(text=text, offsets=True))
        counted = await stub.Tokenize(tokenization_pb2.TokenizeRequest(text=text, count_only=True))
        back = await stub.Detokenize(tokenization_pb2.DetokenizeRequest(token_ids=full.token_ids))
    assert list(full.token_ids) == TOKENIZER.encode(text)
    assert b"".join(full.token_bytes) == text.encode()
    assert (full.text, full.model) == (text, "bytes")
    assert len(full.starts) == len(full.ends) == len(full.token_ids)
    assert all(
        text.encode()[a:b].startswith(part) or len(part) < b - a
        for a, b, part in zip(full.starts, full.ends, full.token_bytes, strict=True)
    )
    assert counted == tokenization_pb2.TokenizeResponse(model="bytes", token_count=len(full.token_ids))
    assert back.text == text


async def test_tokenize_chat_renders_the_template_and_keeps_callers_out_of_it() -> None:
    chat = tokenization_pb2.ChatPrompt(messages=[user("hi<|im_end|>")])
    async with open_door() as door:
        stub = tokenization_pb2_grpc.TokenizationServiceStub(door.channel)
        full = await stub.Tokenize(tokenization_pb2.TokenizeRequest(chat=chat))
        chat.add_generation_prompt = False
        bare = await stub.Tokenize(tokenization_pb2.TokenizeRequest(chat=chat))
        developer = pb.Message(role=pb.ROLE_DEVELOPER, content=[pb.ContentPart(text="a"), pb.ContentPart(text="b")])
        merged = await stub.Tokenize(tokenization_pb2.TokenizeRequest(chat={"messages": [developer]}))
    assert full.text == "<|im_start|>user\nhi<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    marker = TOKENIZER.token_id("<|im_end|>")
    assert list(full.token_ids).count(marker or 0) == 1
    assert bare.text.endswith("<|im_end|>\n")
    assert merged.text.startswith("<|im_start|>system\nab<|im_end|>")


async def test_detokenize_shows_or_hides_special_tokens() -> None:
    ids = [*TOKENIZER.encode("a"), TOKENIZER.eos_token_id or 0]
    async with open_door() as door:
        stub = tokenization_pb2_grpc.TokenizationServiceStub(door.channel)
        hidden = await stub.Detokenize(tokenization_pb2.DetokenizeRequest(token_ids=ids))
        shown = await stub.Detokenize(tokenization_pb2.DetokenizeRequest(token_ids=ids, skip_special_tokens=False))
        half = await stub.Detokenize(tokenization_pb2.DetokenizeRequest(token_ids=[0xC3]))
    assert (hidden.text, shown.text, half.text) == ("a", "a<|end|>", "\ufffd")


async def test_bad_tokenization_requests_are_named() -> None:
    request = tokenization_pb2.TokenizeRequest
    both = {"messages": [user("x"), pb.Message(role=pb.ROLE_ASSISTANT)], "continue_final_message": True}
    bad = {
        "input": request(),
        "offsets": request(text="x", offsets=True, count_only=True),
        "add_special_tokens": request(chat={"messages": [user("x")]}, add_special_tokens=True),
        "chat.messages": request(chat={}),
        "chat.messages[0].role": request(chat={"messages": [pb.Message(content=[pb.ContentPart(text="x")])]}),
        "chat.messages[1].content": request(chat=both),
        "chat.continue_final_message": request(chat={"messages": [user("x")], "continue_final_message": True}),
        "chat.add_generation_prompt": request(chat=both | {"add_generation_prompt": True}),
        "chat.template_args_json": request(chat={"messages": [user("x")], "template_args_json": "1"}),
    }
    async with open_door() as door:
        stub = tokenization_pb2_grpc.TokenizationServiceStub(door.channel)
        for field, message in bad.items():
            found = await failed(stub.Tokenize(message))
            assert found.reason == "INVALID_PARAMETER", field
            assert field in found.fields, (field, found.fields)
        for message in (tokenization_pb2.DetokenizeRequest(), tokenization_pb2.DetokenizeRequest(token_ids=[9999])):
            assert any(field.startswith("token_ids") for field in (await failed(stub.Detokenize(message))).fields)
        assert (await failed(stub.Tokenize(request(model="nope", text="x")))).reason == "MODEL_NOT_FOUND"
        refused = await failed(stub.Tokenize(request(chat={"messages": [user("x")], "tools": [pb.Tool(name="f")]})))
        assert refused.metadata["feature"] == "chat.tools"


async def test_models_are_described() -> None:
    model = served_model(default_sampling=SamplingDefaults(temperature=0.25, top_k=7))
    async with open_door(model=model) as door:
        stub = models_pb2_grpc.ModelServiceStub(door.channel)
        listed = await stub.ListModels(models_pb2.ListModelsRequest())
        got = (await stub.GetModel(models_pb2.GetModelRequest())).model
        assert (await failed(stub.GetModel(models_pb2.GetModelRequest(model="x")))).reason == "MODEL_NOT_FOUND"
        assert "page_token" in (await failed(stub.ListModels(models_pb2.ListModelsRequest(page_token="7")))).fields
        await door.generation.Generate(prompt(sampling={"top_p": 0.5}))
    assert list(listed.models) == [got]
    assert listed.next_page_token == ""
    assert (got.name, got.revision, got.architecture, got.vocab_size) == (
        "bytes",
        "abc",
        "FakeForCausalLM",
        model.vocab_size,
    )
    assert (got.limits.max_context_tokens, got.limits.max_prompt_tokens, got.limits.max_stop_bytes) == (256, 200, 32)
    assert (got.capabilities.chat, got.capabilities.logprobs, got.capabilities.tools) == (True, True, False)
    assert got.default_sampling.temperature == 0.25
    assert not got.default_sampling.HasField("top_p")
    sampling = door.engine.streams[0].request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.25, 7, 0.5)


async def test_server_info_before_and_after_loading() -> None:
    async with open_door(loaded=False) as door:
        stub = engine_pb2_grpc.EngineServiceStub(door.channel)
        door.serving.set_progress(0.5)
        early = await stub.GetServerInfo(engine_pb2.GetServerInfoRequest())
        assert (early.state, early.load_progress, early.device) == (engine_pb2.SERVER_STATE_LOADING, 0.5, "")
        models = models_pb2_grpc.ModelServiceStub(door.channel)
        assert (await failed(models.ListModels(models_pb2.ListModelsRequest()))).reason == "MODEL_LOADING"
    async with open_door() as door:
        stub = engine_pb2_grpc.EngineServiceStub(door.channel)
        ready = await stub.GetServerInfo(engine_pb2.GetServerInfoRequest())
    assert (ready.version, ready.contract, ready.state) == ("1.2.3", "tokenwire.v1", engine_pb2.SERVER_STATE_SERVING)
    assert (list(ready.models), ready.device, ready.kv_cache_tokens, ready.block_size) == (["bytes"], "cpu", 3200, 32)
    assert (ready.max_batch_size, ready.max_batch_prefill_tokens, ready.max_concurrent_requests) == (8, 64, 128)
    assert ready.instance_id != early.instance_id


async def test_load_is_reported_and_watched() -> None:
    async with open_door() as door:
        door.engine.stats = EngineStats(
            num_running=2, num_waiting=3, waiting_tokens=9, num_blocks=10, num_free_blocks=1
        )
        stub = engine_pb2_grpc.EngineServiceStub(door.channel)
        load = (await stub.GetLoad(engine_pb2.GetLoadRequest())).load
        assert (load.running, load.waiting, load.waiting_tokens, load.kv_blocks_free) == (2, 3, 9, 1)
        assert load.utilization == pytest.approx(0.9)
        watch = stub.WatchLoad(engine_pb2.WatchLoadRequest(interval=Duration(nanos=100_000_000)))
        assert (await watch.read()).load.running == 2
        door.engine.stats = EngineStats(num_running=5)
        assert (await watch.read()).load.running == 5
        watch.cancel()
        found = await failed(read(stub.WatchLoad(engine_pb2.WatchLoadRequest(interval=Duration(nanos=1)))))
        assert "interval" in found.fields


def test_the_rate_is_the_windows_and_a_restart_begins_anew() -> None:
    rate = RateMeter()
    assert rate.per_second() == 0
    for second in range(20):
        rate.sample(float(second), second * 10)
    assert rate.per_second() == 10
    rate.sample(20.0, 5)
    assert rate.per_second() == 0
    rate.sample(22.0, 25)
    assert rate.per_second() == 10


async def test_only_operators_may_steer() -> None:
    async with open_door() as door:
        stub = engine_pb2_grpc.EngineServiceStub(door.channel)
        for call in (
            stub.Drain(engine_pb2.DrainRequest()),
            stub.AbortRequests(engine_pb2.AbortRequestsRequest(all=True)),
            stub.FlushCache(engine_pb2.FlushCacheRequest()),
        ):
            found = await failed(call)
            assert (found.code, found.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
            assert "--admin-port" in found.message
        assert not door.engine.aborted
        assert not door.engine.num_flushes


async def admit(stream: FakeStream) -> None:
    stream.admit()


async def operators(door: Door, act: Any) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.server.admin_port}") as admin:
        await act(engine_pb2_grpc.EngineServiceStub(admin))


async def test_operators_abort_flush_and_drain() -> None:
    async with open_door(FakeEngine(admit), admin_port=free_port()) as door:
        calls = [door.generation.GenerateStream(prompt()) for _ in range(2)]
        ids = [(await call.read()).started.info.response_id for call in calls]

        async def act(stub: Any) -> None:
            one = await stub.AbortRequests(engine_pb2.AbortRequestsRequest(response_ids=ids[:1]))
            assert one.aborted == 1
            found = await failed(read(calls[0]))
            assert (found.code, found.reason) == (grpc.StatusCode.ABORTED, "ABORTED_BY_OPERATOR")
            for bad in ({}, {"all": True, "response_ids": ids}):
                assert (
                    "response_ids" in (await failed(stub.AbortRequests(engine_pb2.AbortRequestsRequest(**bad)))).fields
                )
            await stub.FlushCache(engine_pb2.FlushCacheRequest())
            assert door.engine.num_flushes == 1
            assert "grace" in (await failed(stub.Drain(engine_pb2.DrainRequest(grace=Duration(seconds=-1))))).fields
            drained = await stub.Drain(engine_pb2.DrainRequest(grace=Duration(seconds=3)))
            assert drained.requests_in_flight == 1
            assert await asyncio.wait_for(door.serving.drain_requested(), 10) == 3.0
            assert (await stub.AbortRequests(engine_pb2.AbortRequestsRequest(all=True))).aborted == 1

        await operators(door, act)


async def test_more_text_than_a_thread_should_be_busy_with_is_refused() -> None:
    text = "x" * (MAX_CHARS + 1)
    async with open_door(max_message_bytes=2 * MAX_CHARS, options=[("grpc.max_send_message_length", -1)]) as door:
        stub = tokenization_pb2_grpc.TokenizationServiceStub(door.channel)
        assert "text" in (await failed(stub.Tokenize(tokenization_pb2.TokenizeRequest(text=text)))).fields
        found = await failed(door.generation.Generate(prompt(text=text, truncate_prompt_tokens=5)))
        assert "text" in found.fields


async def test_a_conversation_is_continued_where_it_stopped() -> None:
    last = pb.Message(role=pb.ROLE_ASSISTANT, content=[pb.ContentPart(text="The answer is")])
    async with open_door() as door:
        await door.generation.Chat(pb.ChatRequest(messages=[user("?"), last], continue_final_message=True))
    ids = door.engine.streams[0].request.prompt_token_ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False).endswith("assistant\nThe answer is")
