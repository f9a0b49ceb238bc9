"""Keyword options become protos: all of them, only those given, and mistakes by name."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from datetime import timedelta

import pytest
from google.protobuf.descriptor import Descriptor

import tokenwire_client as tw
from tokenwire.v1.text_generation_pb2 import ContentPart
from tokenwire.v1.types_pb2 import JsonSchema, LogprobsOptions
from tokenwire_client import options, requests
from tokenwire_client.messages import message_of, tool_of

SCHEMA = {"type": "object", "title": "Grüße"}
COMMON = {
    "model": "m",
    "temperature": 0.0,
    "top_p": 0.5,
    "top_k": 0,
    "min_p": 0.25,
    "typical_p": 0.5,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.5,
    "context_frequency_penalty": 0.25,
    "seed": -1,
    "candidate_count": 2,
    "best_of": 3,
    "logit_bias": {5: -100.0},
    "allowed_token_ids": (1, 2),
    "watermark": False,
    "max_tokens": 64,
    "min_tokens": 0,
    "stop": ["a", "b"],
    "stop_token_ids": range(2),
    "include_stop": False,
    "ignore_eos": True,
    "time_limit": 1.5,
    "return_text": False,
    "return_token_ids": True,
    "return_prompt_token_ids": True,
    "logprobs": 3,
    "prompt_logprobs": True,
    "skip_special_tokens": False,
    "priority": -5,
    "max_queue_time": timedelta(seconds=2),
    "cache_salt": "salt",
    "cache_bypass": True,
    "session_id": "s",
    "user": "u",
    "labels": {"k": "v"},
}
CONSTRAINTS = {
    "json_schema": SCHEMA,
    "json_object": True,
    "regex": "a+",
    "ebnf": "root ::= 'a'",
    "choices": ["yes", "no"],
    "structural_tag": {"t": 1},
}
STREAM = {"min_tokens_per_event": 4, "max_delay": 0.5, "usage_per_event": False}
GENERATE = COMMON | {"truncate_prompt_tokens": 7, "add_special_tokens": False}
CHAT = COMMON | {
    "tools": [tw.Tool(name="f")],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "reasoning_max_tokens": 0,
    "include_reasoning": False,
    "template_args": {"thinking": False},
    "continue_final_message": True,
}
CALL = set(options.CallOptions.__annotations__)


def unset(message: typing.Any, path: str = "") -> Iterator[str]:
    """Paths of the fields of a message, oneofs of alternatives aside, that are not set."""
    present = {field.name for field, _ in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        real_oneof = field.containing_oneof is not None and not field.containing_oneof.name.startswith("_")
        if real_oneof:
            continue
        if field.name not in present:
            yield path + field.name
        elif isinstance(field.message_type, Descriptor) and field.message_type.full_name.startswith("tokenwire"):
            value = getattr(message, field.name)
            if hasattr(value, "ListFields"):
                yield from unset(value, f"{path}{field.name}.")


def test_generate_options_reach_every_field() -> None:
    request, call = requests.generate_request("hi", GENERATE | STREAM | {"regex": "a"}, stream=True)
    assert list(unset(request)) == [
        "output.logprobs.token_ids",
        "output.prompt_logprobs.top_n",
        "output.prompt_logprobs.token_ids",
    ]
    assert call == {}
    assert set(GENERATE | STREAM | CONSTRAINTS) | CALL == set(typing.get_type_hints(options.GenerateStreamOptions))
    assert set(GENERATE | CONSTRAINTS) | CALL == set(typing.get_type_hints(options.GenerateOptions))


def test_chat_options_reach_every_field() -> None:
    request, _ = requests.chat_request([tw.user("hi")], CHAT | STREAM | {"regex": "a"}, stream=True)
    assert list(unset(request)) == [
        "output.logprobs.token_ids",
        "output.prompt_logprobs.top_n",
        "output.prompt_logprobs.token_ids",
    ]
    assert set(CHAT | STREAM | CONSTRAINTS) | CALL == set(typing.get_type_hints(options.ChatStreamOptions))
    assert set(CHAT | CONSTRAINTS) | CALL == set(typing.get_type_hints(options.ChatOptions))


def test_options_arrive_as_given() -> None:
    request, _ = requests.generate_request("hi", GENERATE | STREAM, stream=True)
    sampling, stopping, output = request.sampling, request.stopping, request.output
    assert (request.model, request.text, request.user, dict(request.labels)) == ("m", "hi", "u", {"k": "v"})
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.best_of) == (0.0, 0, -1, 3)
    assert (dict(sampling.logit_bias), list(sampling.allowed_token_ids)) == ({5: -100.0}, [1, 2])
    assert (stopping.max_tokens, list(stopping.stop), list(stopping.stop_token_ids)) == (64, ["a", "b"], [0, 1])
    assert (stopping.include_stop, stopping.ignore_eos, stopping.time_limit.ToTimedelta()) == (
        False,
        True,
        timedelta(seconds=1.5),
    )
    assert (output.text, output.token_ids, output.prompt_token_ids) == (False, True, True)
    assert output.logprobs == LogprobsOptions(top_n=3)
    assert output.prompt_logprobs == LogprobsOptions()
    assert (request.scheduling.priority, request.scheduling.max_queue_time.seconds) == (-5, 2)
    assert (request.cache.salt, request.cache.bypass, request.cache.session_id) == ("salt", True, "s")
    assert (request.stream.min_tokens_per_event, request.stream.max_delay.nanos) == (4, 500_000_000)
    assert (request.truncate_prompt_tokens, request.add_special_tokens) == (7, False)


def test_chat_options_arrive_as_given() -> None:
    request, _ = requests.chat_request([tw.user("hi")], CHAT, stream=False)
    assert [tool.name for tool in request.tools] == ["f"]
    assert request.tool_choice == tw.ToolChoice(mode="TOOL_CHOICE_MODE_REQUIRED")
    assert (request.reasoning.effort, request.reasoning.max_tokens, request.reasoning.include) == ("low", 0, False)
    assert request.stopping.max_tokens == 64
    assert request.template_args_json == '{"thinking": false}'
    assert (request.parallel_tool_calls, request.continue_final_message) == (False, True)


def test_what_is_not_given_stays_unset() -> None:
    nothing = dict.fromkeys(GENERATE | STREAM | CONSTRAINTS)
    assert requests.generate_request("hi", nothing, stream=True)[0] == tw.GenerateRequest(text="hi")
    assert requests.generate_request("hi", {}, stream=True)[0] == tw.GenerateRequest(text="hi")
    chat = requests.chat_request([tw.user("hi")], dict.fromkeys(CHAT), stream=False)[0]
    assert chat == tw.ChatRequest(messages=[tw.user("hi")])
    off = {"logprobs": False, "prompt_logprobs": None, "json_object": False}
    assert not requests.generate_request("hi", off, stream=False)[0].output.HasField("logprobs")
    assert (
        requests.generate_request("hi", {"json_object": False}, stream=False)[0].constraint.WhichOneof("kind") is None
    )


@pytest.mark.parametrize(("value", "top_n"), [(True, None), (0, 0), (5, 5), (LogprobsOptions(top_n=2), 2)])
def test_logprobs_take_a_switch_a_number_or_the_proto(value, top_n) -> None:
    output = requests.generate_request("hi", {"logprobs": value}, stream=False)[0].output
    assert output.HasField("logprobs")
    assert (output.logprobs.top_n if output.logprobs.HasField("top_n") else None) == top_n


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_each_constraint_sets_its_own_kind(name) -> None:
    request, _ = requests.generate_request("hi", {name: CONSTRAINTS[name]}, stream=False)
    assert request.constraint.WhichOneof("kind") == name


def test_constraints_arrive_as_given() -> None:
    def constraint(**given: object) -> typing.Any:
        return requests.generate_request("hi", given, stream=False)[0].constraint

    assert constraint(json_schema=SCHEMA).json_schema.schema == '{"type": "object", "title": "Grüße"}'
    assert constraint(json_schema='{"a":  1}').json_schema.schema == '{"a":  1}'
    own = JsonSchema(schema="{}", name="n", strict=False)
    assert constraint(json_schema=own).json_schema == own
    assert list(constraint(choices=["yes", "no"]).choices.values) == ["yes", "no"]
    assert constraint(structural_tag={"t": 1}).structural_tag == '{"t": 1}'
    assert constraint(ebnf="root ::= 'a'").ebnf == "root ::= 'a'"


def test_prompts_are_texts_or_token_ids() -> None:
    request, _ = requests.generate_request((1, 2, 3), {}, stream=False)
    assert list(request.token_ids.ids) == [1, 2, 3]
    assert requests.generate_request([], {}, stream=False)[0].WhichOneof("prompt") == "token_ids"
    assert requests.generate_request("", {}, stream=False)[0].WhichOneof("prompt") == "text"
    for wrong in (b"hi", 5, None, {"a": 1}):
        with pytest.raises(TypeError, match="prompt"):
            requests.generate_request(wrong, {}, stream=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"max_token": 5}, TypeError, "max_token: no such option here; did you mean max_tokens"),
        ({"nonsense_xyz": 5}, TypeError, "nonsense_xyz: no such option"),
        ({"min_tokens_per_event": 5}, TypeError, "min_tokens_per_event: no such option"),
        ({"tools": []}, TypeError, "tools: no such option"),
        ({"top_k": -1}, ValueError, "top_k: "),
        ({"max_tokens": 2**32}, ValueError, "max_tokens: "),
        ({"seed": 2**63}, ValueError, "seed: "),
        ({"temperature": "hot"}, TypeError, "temperature: "),
        ({"max_tokens": 1.5}, TypeError, "max_tokens: "),
        ({"stop": 5}, TypeError, "stop: "),
        ({"stop": [5]}, TypeError, "stop: "),
        ({"logit_bias": [1]}, TypeError, "logit_bias: "),
        ({"time_limit": "soon"}, TypeError, "time_limit: "),
        ({"choices": "yes"}, TypeError, "choices: "),
        ({"regex": "a", "ebnf": "b"}, ValueError, "at most one constraint"),
        ({"user": "\ud800"}, ValueError, "user: "),
    ],
)
def test_mistakes_are_named(given, error, says) -> None:
    with pytest.raises(error, match=says):
        requests.generate_request("hi", given, stream=False)


def test_chat_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"tool_choice: 'f' is not auto, none or required"):
        requests.chat_request([tw.user("hi")], {"tool_choice": "f"}, stream=False)
    with pytest.raises(TypeError, match="messages: expected a list"):
        requests.chat_request({"role": "user"}, {}, stream=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"messages\[1\]\.role: 'robot'"):
        requests.chat_request([tw.user("hi"), {"role": "robot"}], {}, stream=False)
    with pytest.raises(TypeError, match="truncate_prompt_tokens"):
        requests.chat_request([tw.user("hi")], {"truncate_prompt_tokens": 5}, stream=False)


def test_messages_take_openais_shape() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAEC"}}
    assert message_of({"role": "user", "content": "hi"}) == tw.user("hi")
    assert message_of({"role": "system", "content": [{"type": "text", "text": "a"}, "b"]}) == tw.system("a", "b")
    assert message_of({"role": "developer", "content": "hi"}) == tw.developer("hi")
    assert message_of({"role": "user", "content": [image]}) == tw.user(tw.media(b"\x00\x01\x02", "image/png"))
    assert message_of({"role": "tool", "tool_call_id": "c", "content": "7"}) == tw.tool_result("c", "7")
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}]
    call = tw.ToolCall(id="c", name="f", arguments='{"x":1}')
    assert message_of({"role": "assistant", "content": None, "tool_calls": calls}) == tw.assistant(tool_calls=[call])
    assert message_of({"role": "user", "content": [ContentPart(text="x")], "name": "n"}).name == "n"
    assert not message_of({"role": "user", "content": ""}).HasField("name")


def test_tools_take_openais_shape() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    tool = tw.Tool(name="f", description="d", parameters_schema='{"type": "object"}', strict=True)
    assert tool_of(function) == tool
    assert tool_of({"type": "function", "function": function}) == tool


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": [{"type": "audio"}]}, r"message\.content\[0\]: expected a text"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}, r"message\.content\[0\]\.x: not known"),
        ({"role": "user", "contents": "a"}, r"message\.contents: not known"),
        ({"content": "a"}, r"message\.role: None"),
        ({"role": "user", "content": [{"type": "text"}]}, r"message\.content\[0\]\.text: missing"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, r"image_url\.url: missing"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:x,y"}]}, "base64"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:x;base64,!"}]}, "base64"),
        ({"role": "user", "content": 5}, r"message\.content: expected"),
        ({"role": "assistant", "tool_calls": [5]}, r"message\.tool_calls\[0\]: expected"),
        ({"role": "user", "name": 5}, r"message\.name: "),
        (5, "message: expected"),
    ],
)
def test_wrong_messages_are_named(message, says) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        message_of(message)
