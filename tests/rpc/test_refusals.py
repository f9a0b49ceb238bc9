"""Every field out of its range is refused by name, before the engine hears of the request; the server goes on."""

from typing import Any

import grpc
import pytest

from tests.support.rpc import Door, open_door, prompt, read, refusal, served_model
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc

NAN, INF = float("nan"), float("inf")
USER = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="hi")])
ASSISTANT = pb.Message(role=pb.ROLE_ASSISTANT, content=[pb.ContentPart(text="ho")])


def chat(**fields: Any) -> pb.ChatRequest:
    return pb.ChatRequest(**({"messages": [USER]} | fields))


BAD: dict[str, tuple[Any, str]] = {
    "no prompt": (pb.GenerateRequest(), "prompt"),
    "empty text": (prompt(text=""), "text"),
    "no token ids": (pb.GenerateRequest(token_ids={}), "token_ids.ids"),
    "token id out of the vocabulary": (pb.GenerateRequest(token_ids={"ids": [1, 9999]}), "token_ids.ids[1]"),
    "special tokens around token ids": (
        pb.GenerateRequest(token_ids={"ids": [1]}, add_special_tokens=True),
        "add_special_tokens",
    ),
    "truncate to 0": (prompt(truncate_prompt_tokens=0), "truncate_prompt_tokens"),
    "max_tokens 0": (prompt(stopping={"max_tokens": 0}), "stopping.max_tokens"),
    "min above max": (prompt(stopping={"max_tokens": 2, "min_tokens": 3}), "stopping.min_tokens"),
    "nothing allowed but ends": (
        prompt(sampling={"allowed_token_ids": [7]}, stopping={"max_tokens": 2, "min_tokens": 1, "stop_token_ids": [7]}),
        "sampling.allowed_token_ids",
    ),
    "min above what fits": (prompt(stopping={"min_tokens": 300}), "stopping.min_tokens"),
    "10,000 stop strings": (prompt(stopping={"stop": ["a"] * 10_000}), "stopping.stop"),
    "empty stop string": (prompt(stopping={"stop": ["a", ""]}), "stopping.stop[1]"),
    "long stop string": (prompt(stopping={"stop": ["é" * 17]}), "stopping.stop[0]"),
    "many stop tokens": (prompt(stopping={"stop_token_ids": [1] * 65}), "stopping.stop_token_ids"),
    "stop token out of the vocabulary": (prompt(stopping={"stop_token_ids": [9999]}), "stopping.stop_token_ids[0]"),
    "time limit 0": (prompt(stopping={"time_limit": {}}), "stopping.time_limit"),
    "time limit of two signs": (prompt(stopping={"time_limit": {"seconds": 1, "nanos": -1}}), "stopping.time_limit"),
    "time limit beyond durations": (prompt(stopping={"time_limit": {"seconds": 2**62}}), "stopping.time_limit"),
    "many biases": (prompt(sampling={"logit_bias": dict.fromkeys(range(1025), 1.0)}), "sampling.logit_bias"),
    "bias out of range": (prompt(sampling={"logit_bias": {7: 101.0}}), "sampling.logit_bias[7]"),
    "bias NaN": (prompt(sampling={"logit_bias": {7: NAN}}), "sampling.logit_bias[7]"),
    "bias out of the vocabulary": (prompt(sampling={"logit_bias": {9999: 1.0}}), "sampling.logit_bias[9999]"),
    "many allowed tokens": (prompt(sampling={"allowed_token_ids": [1] * 65_537}), "sampling.allowed_token_ids"),
    "allowed token unknown": (prompt(sampling={"allowed_token_ids": [9999]}), "sampling.allowed_token_ids[0]"),
    "no candidates": (prompt(sampling={"candidate_count": 0}), "sampling.candidate_count"),
    "many candidates": (prompt(sampling={"candidate_count": 5}), "sampling.candidate_count"),
    "best_of below candidates": (prompt(sampling={"candidate_count": 3, "best_of": 2}), "sampling.best_of"),
    "best_of too large": (prompt(sampling={"best_of": 5}), "sampling.best_of"),
    "top_n too large": (prompt(output={"logprobs": {"top_n": 6}}), "output.logprobs.top_n"),
    "many named logprobs": (prompt(output={"logprobs": {"token_ids": [1] * 65}}), "output.logprobs.token_ids"),
    "named logprob unknown": (
        prompt(output={"prompt_logprobs": {"token_ids": [9999]}}),
        "output.prompt_logprobs.token_ids[0]",
    ),
    "priority": (prompt(scheduling={"priority": 101}), "scheduling.priority"),
    "queue time": (prompt(scheduling={"max_queue_time": {"seconds": -1}}), "scheduling.max_queue_time"),
    "salt": (prompt(cache={"salt": "x" * 257}), "cache.salt"),
    "session id": (prompt(cache={"session_id": "x" * 257}), "cache.session_id"),
    "user": (prompt(user="é" * 129), "user"),
    "many labels": (prompt(labels={str(i): "" for i in range(17)}), "labels"),
    "long label": (prompt(labels={"key": "x" * 257}), "labels['key']"),
    "stream options on a unary call": (prompt(stream={"min_tokens_per_event": 2}), "stream"),
    "no messages": (pb.ChatRequest(), "messages"),
    "no role": (chat(messages=[pb.Message(content=[pb.ContentPart(text="x")])]), "messages[0].role"),
    "unknown role": (chat(messages=[USER, pb.Message(role=17, content=USER.content)]), "messages[1].role"),
    "no content": (chat(messages=[pb.Message(role=pb.ROLE_USER)]), "messages[0].content"),
    "empty part": (
        chat(messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart()])]),
        "messages[0].content[0]",
    ),
    "tool_call_id of a user": (
        chat(messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="x")], tool_call_id="1")]),
        "messages[0].tool_call_id",
    ),
    "continue a user": (chat(continue_final_message=True), "continue_final_message"),
    "template args that are no JSON": (chat(template_args_json="{"), "template_args_json"),
    "template args with NaN": (chat(template_args_json='{"a": NaN}'), "template_args_json"),
    "template args with a surrogate": (chat(template_args_json='{"a": "\\ud800"}'), "template_args_json"),
    "template args too deep": (chat(template_args_json="[" * 30_000 + "]" * 30_000), "template_args_json"),
    "template args that are a list": (chat(template_args_json="[]"), "template_args_json"),
    "template args that set messages": (chat(template_args_json='{"messages": []}'), "template_args_json"),
    "template args too long": (chat(template_args_json='{"a": "' + "x" * 70_000 + '"}'), "template_args_json"),
    "unknown tool choice": (chat(tool_choice={"mode": 9}), "tool_choice.mode"),
}
RANGES = {
    "temperature": (-1, 101, NAN, INF),
    "top_p": (0, 2, -1, NAN),
    "min_p": (-0.1, 1.1, NAN),
    "typical_p": (0, 1.1, NAN),
    "presence_penalty": (-2.1, 2.1, NAN),
    "frequency_penalty": (-2.1, 2.1, NAN),
    "context_frequency_penalty": (-2.1, 2.1, -INF),
    "repetition_penalty": (0, 101, NAN),
}
BAD |= {
    f"{name} {value}": (prompt(sampling={name: value}), f"sampling.{name}")
    for name, values in RANGES.items()
    for value in values
}


async def refused(door: Door, request: Any, *, streams: bool = False) -> Any:
    stub = pb_grpc.TextGenerationServiceStub(door.channel)
    is_chat = isinstance(request, pb.ChatRequest)
    call = read((stub.ChatStream if is_chat else stub.GenerateStream)(request)) if streams else None
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call or (stub.Chat if is_chat else stub.Generate)(request))
    assert not door.engine.streams, "the engine was never asked"
    return refusal(caught.value)


async def test_each_bad_field_is_named() -> None:
    async with open_door() as door:
        for case, (request, field) in BAD.items():
            found = await refused(door, request)
            assert found.code is grpc.StatusCode.INVALID_ARGUMENT, case
            assert found.reason == "INVALID_PARAMETER", case
            assert field in found.fields, (case, found.fields)
            assert found.fields[field], case
            assert field in found.message, case
            if field != "stream":
                assert await refused(door, request, streams=True), case
        assert (await door.generation.Generate(prompt())).candidates


async def test_all_violations_come_at_once() -> None:
    request = prompt(text="", sampling={"temperature": -1, "top_p": 2}, stopping={"max_tokens": 0})
    async with open_door() as door:
        found = await refused(door, request)
    assert set(found.fields) == {"text", "sampling.temperature", "sampling.top_p", "stopping.max_tokens"}


TOOL = pb.Tool(name="f")
LATER: dict[str, tuple[Any, str]] = {
    "watermark": (prompt(sampling={"watermark": True}), "sampling.watermark"),
    "json_schema": (prompt(constraint={"json_schema": {"schema": "{}"}}), "constraint.json_schema"),
    "json_object": (prompt(constraint={"json_object": {}}), "constraint.json_object"),
    "regex": (prompt(constraint={"regex": "a"}), "constraint.regex"),
    "ebnf": (prompt(constraint={"ebnf": "root ::= 'a'"}), "constraint.ebnf"),
    "choices": (chat(constraint={"choices": {"values": ["a"]}}), "constraint.choices"),
    "structural_tag": (chat(constraint={"structural_tag": "{}"}), "constraint.structural_tag"),
    "tools": (chat(tools=[TOOL]), "tools"),
    "tool_choice": (chat(tool_choice={"mode": pb.TOOL_CHOICE_MODE_NONE}), "tool_choice"),
    "parallel_tool_calls": (chat(parallel_tool_calls=True), "parallel_tool_calls"),
    "reasoning": (chat(reasoning={"effort": "low"}), "reasoning"),
    "media": (
        chat(messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(media={"url": "http://x"})])]),
        "messages[0].content[0].media",
    ),
    "tool_calls": (
        chat(messages=[pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(id="1", name="f")]), USER]),
        "messages[0].tool_calls",
    ),
    "tool result": (
        chat(messages=[pb.Message(role=pb.ROLE_TOOL, content=[pb.ContentPart(text="1")], tool_call_id="1"), USER]),
        "messages[0].role",
    ),
    "reasoning of a turn": (
        chat(messages=[pb.Message(role=pb.ROLE_ASSISTANT, content=[pb.ContentPart(text="x")], reasoning="y"), USER]),
        "messages[0].reasoning",
    ),
}


async def test_what_is_not_built_in_is_refused_by_name() -> None:
    async with open_door() as door:
        for case, (request, feature) in LATER.items():
            found = await refused(door, request)
            assert found.code is grpc.StatusCode.FAILED_PRECONDITION, case
            assert found.reason == "FEATURE_NOT_ENABLED", case
            assert found.metadata["feature"] == feature, case
            assert found.message.startswith(f"{feature}: "), case


async def test_best_of_is_for_unary_calls() -> None:
    async with open_door() as door:
        found = await refused(door, prompt(sampling={"best_of": 2}), streams=True)
    assert "sampling.best_of" in found.fields


async def test_chat_needs_a_template() -> None:
    async with open_door(model=served_model(chat_template=None)) as door:
        found = await refused(door, chat())
    assert (found.reason, found.metadata["feature"]) == ("FEATURE_NOT_ENABLED", "messages")


async def test_unknown_model_is_not_found_and_the_known_one_is_told() -> None:
    async with open_door(model=served_model(aliases=("other",))) as door:
        found = await refused(door, prompt(model="nope"))
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        assert "bytes" in found.message
        assert found.details["ResourceInfo"].resource_name == "nope"  # type: ignore[attr-defined]
        for name in ("", "bytes", "other"):
            assert (await door.generation.Generate(prompt(model=name))).info.model == "bytes"


CONTEXT: dict[str, tuple[Any, str, dict[str, str]]] = {
    "prompt too long": (
        prompt(text="x" * 201),
        "text",
        {"promptTokens": "201", "maxTokens": "0", "maxContext": "256"},
    ),
    "prompt far too long": (
        prompt(text="x" * 300_000),
        "text",
        {"promptTokens": "200", "maxTokens": "0", "maxContext": "256"},
    ),
    "token ids too long": (
        pb.GenerateRequest(token_ids={"ids": [1] * 201}),
        "token_ids",
        {"promptTokens": "201", "maxTokens": "0", "maxContext": "256"},
    ),
    "prompt and max_tokens": (
        prompt(text="x" * 100, stopping={"max_tokens": 157}),
        "stopping.max_tokens",
        {"promptTokens": "100", "maxTokens": "157", "maxContext": "256"},
    ),
    "conversation too long": (
        chat(messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="x" * 300)])]),
        "messages",
        {"promptTokens": "319", "maxTokens": "0", "maxContext": "256"},
    ),
}


@pytest.mark.parametrize("case", CONTEXT)
async def test_what_does_not_fit_the_context_is_told_with_numbers(case: str) -> None:
    request, field, metadata = CONTEXT[case]
    async with open_door() as door:
        found = await refused(door, request)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED")
    assert list(found.fields) == [field]
    assert found.metadata == metadata


GENERATE = "/tokenwire.v1.TextGenerationService/Generate"


async def test_bytes_that_do_not_parse_are_refused_on_the_wire() -> None:
    cases = {
        b"\x12\x02\xff\xfe": "text",
        prompt().SerializeToString() + b"\xca\x3e\x01x": "1001",
        b"\x12\x09ab": "text",
        b"\xff\xff\xff": "",
    }
    async with open_door() as door:
        raw = door.channel.unary_unary(GENERATE)
        for payload, field in cases.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw(payload)
            found = refusal(caught.value)
            assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER")
            assert list(found.fields) == [field]
        assert (await door.generation.Generate(prompt())).candidates


async def test_a_body_over_the_limit_is_grpcs_own_refusal_and_the_server_goes_on() -> None:
    async with open_door(options=[("grpc.max_send_message_length", -1)]) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.generation.Generate(prompt(text="x" * 100_000_000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "grpc-status-details-bin" not in dict(caught.value.trailing_metadata() or ())
        assert (await door.generation.Generate(prompt())).candidates
