"""OpenAI's own SDK as the oracle of /v1."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import openai
import pytest

from tests.gateway.conftest import Rest
from tests.gateway.scripted import CREATED, MODEL, Failure, Script, ScriptedService, random_script, stopped
from tokenwire.v1 import text_generation_pb2 as text
from tokenwire.v1 import types_pb2 as types

ASK = [{"role": "user", "content": "hi"}]


@pytest.fixture
def sdk(rest: Rest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{rest.url}/v1", api_key="key-1", max_retries=0) as client:
        yield client


def test_chat_completion(sdk: openai.OpenAI, service: ScriptedService) -> None:
    service.script = Script(finish=stopped())
    answer = sdk.chat.completions.create(model=MODEL, messages=ASK)
    assert answer.id == "chatcmpl-r-1"
    assert answer.object == "chat.completion"
    assert answer.created == CREATED
    assert answer.model == MODEL
    assert answer.system_fingerprint == "fp"
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello, world")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 4, 11)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (3, 2)
    assert service.metadata[0]["authorization"] == "Bearer key-1"


def test_chat_options_reach_the_contract(sdk: openai.OpenAI, service: ScriptedService) -> None:
    extra = {
        "top_k": 40,
        "min_p": 0.25,
        "typical_p": 0.5,
        "repetition_penalty": 1.5,
        "ignore_eos": True,
        "min_tokens": 2,
        "stop_token_ids": [5, 6],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "priority": -3,
        "chat_template_kwargs": {"enable_thinking": False},
        "continue_final_message": True,
        "cache_salt": "tenant",
    }
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "result"},
        {"role": "assistant", "content": "partial", "refusal": None},
    ]
    sdk.chat.completions.create(
        model="tgi",
        messages=messages,
        temperature=0.5,
        top_p=0.25,
        n=2,
        seed=-7,
        stop=["x", "y"],
        max_completion_tokens=9,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"42": -100, "7": 1.5},
        logprobs=True,
        top_logprobs=3,
        user="u-1",
        metadata={"team": "t"},
        extra_body=extra,
    )
    (asked,) = service.requests
    assert isinstance(asked, text.ChatRequest)
    assert asked.model == ""
    sampling = types.SamplingParams(
        temperature=0.5,
        top_p=0.25,
        top_k=40,
        min_p=0.25,
        typical_p=0.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        seed=-7,
        candidate_count=2,
        logit_bias={42: -100, 7: 1.5},
    )
    assert asked.sampling == sampling
    stopping = types.StoppingCriteria(
        max_tokens=9, min_tokens=2, stop=["x", "y"], stop_token_ids=[5, 6], include_stop=True, ignore_eos=True
    )
    assert asked.stopping == stopping
    assert asked.output == types.OutputOptions(logprobs=types.LogprobsOptions(top_n=3), skip_special_tokens=False)
    assert asked.scheduling.priority == -3
    assert asked.cache == types.CacheOptions(salt="tenant")
    assert (asked.user, dict(asked.labels)) == ("u-1", {"team": "t"})
    assert asked.template_args_json == '{"enable_thinking":false}'
    assert asked.continue_final_message
    assert [text.Role.Name(message.role)[5:] for message in asked.messages] == [
        "SYSTEM",
        "USER",
        "ASSISTANT",
        "TOOL",
        "ASSISTANT",
    ]
    assert [part.text for part in asked.messages[1].content] == ["a", "b"]
    assert asked.messages[1].name == "Ann"
    assert asked.messages[2].tool_calls[0] == text.ToolCall(id="c1", name="f", arguments="{}")
    assert asked.messages[3].tool_call_id == "c1"


def test_unset_options_stay_unset(sdk: openai.OpenAI, service: ScriptedService) -> None:
    sdk.chat.completions.create(model="", messages=ASK)
    (asked,) = service.requests
    assert asked.sampling == types.SamplingParams()
    assert asked.stopping == types.StoppingCriteria()
    assert asked.output == types.OutputOptions()
    assert not asked.HasField("constraint")
    assert not asked.HasField("tool_choice")


def test_chat_stream(sdk: openai.OpenAI, service: ScriptedService) -> None:
    service.script = Script(finish=stopped("END"))
    with sdk.chat.completions.create(
        model=MODEL, messages=ASK, stream=True, n=2, stop="END", stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert {chunk.id for chunk in chunks} == {"chatcmpl-r-1"}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert [c.choices[0].delta.role for c in chunks[:2]] == ["assistant", "assistant"]
    assert [c.choices[0].index for c in chunks[:2]] == [0, 1]
    for index in (0, 1):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(c.delta.content or "" for c in mine) == "Hello, world"
        assert [c.finish_reason for c in mine if c.finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_chat_stream_shape_without_usage(rest: Rest) -> None:
    answer = rest.post("/v1/chat/completions", {"messages": ASK, "stream": True})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-compute-type"] == "cpu"
    *chunks, done = answer.events()
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}


def test_chat_usage_null_in_other_chunks(rest: Rest) -> None:
    body = {"messages": ASK, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, done = rest.post("/v1/chat/completions", body).events()
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["usage"]["total_tokens"] == 11


@pytest.mark.parametrize("seed", range(12))
def test_streamed_text_equals_unary(sdk: openai.OpenAI, service: ScriptedService, seed: int) -> None:
    service.script = random_script(seed)
    whole = sdk.chat.completions.create(model="", messages=ASK).choices[0].message.content
    with sdk.chat.completions.create(model="", messages=ASK, stream=True) as stream:
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert streamed == whole == service.script.text()
    answer = sdk.completions.create(model="", prompt="x").choices[0].text
    with sdk.completions.create(model="", prompt="x", stream=True) as pieces:
        assert "".join(chunk.choices[0].text for chunk in pieces) == answer == whole


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(sdk: openai.OpenAI, service: ScriptedService, stream: bool) -> None:
    service.script = Script(tokens=[b"A", "🙂".encode()[:2], "🙂".encode()[2:]], groups=(2, 1))
    if stream:
        with sdk.chat.completions.create(model="", messages=ASK, logprobs=True, top_logprobs=2, stream=True) as chunks:
            content = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content or []]
    else:
        answer = sdk.chat.completions.create(model="", messages=ASK, logprobs=True, top_logprobs=2)
        assert answer.choices[0].logprobs is not None
        content = answer.choices[0].logprobs.content or []
    assert b"".join(bytes(token.bytes or []) for token in content).decode() == "A🙂"
    assert [token.logprob for token in content] == [-0.5] * 3
    assert [[top.logprob for top in token.top_logprobs] for token in content] == [[-0.5, -9999.0]] * 3
    assert content[0].top_logprobs[1].token == "alt1"


def test_reasoning_and_tool_calls_are_told(sdk: openai.OpenAI, service: ScriptedService) -> None:
    call = text.ToolCall(id="call_1", name="f", arguments='{"a": 1}')
    finish = types.Finish(reason=types.FINISH_REASON_TOOL_CALLS)
    service.script = Script(tokens=(), reasoning="hm", tool_call=call, finish=finish)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    choice = sdk.chat.completions.create(model="", messages=ASK, tools=tools, tool_choice="required").choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].function.arguments == '{"a": 1}'
    assert choice.message.model_extra == {"reasoning_content": "hm"}
    asked = service.requests[-1]
    assert asked.tools[0] == text.Tool(name="f", parameters_schema='{"type":"object","properties":{}}')
    assert asked.tool_choice.mode == text.TOOL_CHOICE_MODE_REQUIRED
    with sdk.chat.completions.create(model="", messages=ASK, tools=tools, stream=True) as stream:
        deltas = [chunk.choices[0].delta for chunk in stream]
    pieces = [call for delta in deltas for call in delta.tool_calls or []]
    assert (pieces[0].id, pieces[0].function.name) == ("call_1", "f")
    assert "".join(piece.function.arguments or "" for piece in pieces) == '{"a": 1}'
    assert [
        d.model_extra["reasoning_content"] for d in deltas if d.model_extra and "reasoning_content" in d.model_extra
    ] == ["hm"]


def test_response_format_becomes_a_constraint(sdk: openai.OpenAI, service: ScriptedService) -> None:
    schema = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}}
    form = {"type": "json_schema", "json_schema": {"name": "out", "schema": schema, "strict": True}}
    sdk.chat.completions.create(model="", messages=ASK, response_format=form)
    constraint = service.requests[-1].constraint.json_schema
    assert (constraint.name, constraint.strict) == ("out", True)
    assert constraint.schema == '{"type":"object","properties":{"b":{"type":"integer"},"a":{}}}'
    sdk.chat.completions.create(model="", messages=ASK, response_format={"type": "json_object"})
    assert service.requests[-1].constraint.HasField("json_object")


def test_completion_shapes(sdk: openai.OpenAI, service: ScriptedService) -> None:
    answer = sdk.completions.create(model=MODEL, prompt=["one", "two"], n=2, best_of=2, max_tokens=4)
    assert answer.id == "cmpl-r-1"
    assert answer.object == "text_completion"
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 16)
    assert sorted(asked.text for asked in service.requests) == ["one", "two"]
    assert service.requests[0].sampling.best_of == 2


def test_completion_of_token_ids(sdk: openai.OpenAI, service: ScriptedService) -> None:
    sdk.completions.create(model="", prompt=[1, 2, 3])
    assert list(service.requests[0].token_ids.ids) == [1, 2, 3]
    sdk.completions.create(model="", prompt=[[4, 5], [6]])
    assert sorted(list(asked.token_ids.ids) for asked in service.requests[1:]) == [[4, 5], [6]]


def test_completion_stream_of_several_prompts(sdk: openai.OpenAI, service: ScriptedService) -> None:
    with sdk.completions.create(
        model="", prompt=["one", "two", "three"], n=2, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    for index in range(6):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(c.text for c in mine) == "Hello, world"
        assert [c.finish_reason for c in mine if c.finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (21, 24)
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs_and_echo(sdk: openai.OpenAI, service: ScriptedService, stream: bool) -> None:
    service.script = Script(tokens=[b" a", b" t", b"ime"])
    ask = {"model": "", "prompt": "Once upon", "echo": True, "logprobs": 1}
    columns: dict[str, list[object]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    if stream:
        with sdk.completions.create(**ask, stream=True) as chunks:
            pieces = [chunk.choices[0] for chunk in chunks]
    else:
        pieces = sdk.completions.create(**ask).choices
    for piece in pieces:
        for name, column in columns.items():
            column.extend(getattr(piece.logprobs, name) or [] if piece.logprobs else [])
    assert "".join(piece.text for piece in pieces) == "Once upon a time"
    assert columns["tokens"] == ["Once", " upon", " a", " t", "ime"]
    assert columns["token_logprobs"] == [None, -1.5, -0.5, -0.5, -0.5]
    assert columns["text_offset"] == [0, 4, 9, 11, 13]
    assert columns["top_logprobs"][0] is None
    assert columns["top_logprobs"][2] == {" a": -0.5}


def test_echo_of_token_ids_is_detokenized_by_the_service(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="", prompt=[72, 105], echo=True)
    assert answer.choices[0].text == "HiHello, world"
    assert answer.choices[0].logprobs is None


def test_a_huge_n_costs_nothing_before_the_service_refuses_it(rest: Rest, service: ScriptedService) -> None:
    service.script = Script(failure=Failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER"))
    for body in ({"prompt": "x"}, {"messages": ASK}):
        path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        assert rest.post(path, {**body, "n": 2**32 - 1, "stream": True}).status == 400


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list().data] == [MODEL, "org/adapter"]
    model = sdk.models.retrieve(MODEL)
    assert (model.id, model.created, model.object) == (MODEL, CREATED, "model")
    with pytest.raises(openai.NotFoundError) as error:
        sdk.models.retrieve("org/other")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


NEUTRAL = {
    "store": False,
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "n": None,
    "modalities": ["text"],
    "audio": None,
    "functions": [],
    "logit_bias": None,
    "stop": None,
    "web_search_options": None,
    "prediction": None,
    "verbosity": "medium",
    "stream_options": None,
    "metadata": {},
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_values_ask_for_nothing(rest: Rest, service: ScriptedService, name: str) -> None:
    answer = rest.post("/v1/chat/completions", {"messages": ASK, name: NEUTRAL[name]})
    assert answer.status == 200, answer.body
    asked = service.requests[-1]
    assert not asked.HasField("constraint")
    assert not asked.tools
    assert not asked.HasField("tool_choice")
    assert not asked.HasField("parallel_tool_calls")


REFUSED = {
    "store": True,
    "service_tier": "flex",
    "modalities": ["text", "audio"],
    "audio": {"voice": "a"},
    "functions": [{"name": "f"}],
    "web_search_options": {},
    "prediction": {"type": "content"},
    "verbosity": "low",
    "frobnicate": 1,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_by_name(rest: Rest, service: ScriptedService, name: str) -> None:
    answer = rest.post("/v1/chat/completions", {"messages": ASK, name: REFUSED[name]})
    assert answer.status == 400
    error = answer.json()["error"]
    assert error["param"] == name
    assert error["type"] == "invalid_request_error"
    assert name in error["message"]
    assert not service.requests


def test_cost_headers(rest: Rest) -> None:
    headers = rest.post("/v1/chat/completions", {"messages": ASK}).headers
    told = {name: headers[name] for name in ("x-total-time", "x-queue-time", "x-inference-time", "x-time-per-token")}
    assert told == {"x-total-time": "110", "x-queue-time": "10", "x-inference-time": "100", "x-time-per-token": "25"}
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"], headers["x-compute-characters"]) == (
        "7",
        "4",
        "2",
    )
