"""OpenAI requests to tokenwire.v1 requests."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import orjson

from tokenwire.v1 import text_generation_pb2 as text
from tokenwire.v1 import types_pb2 as types
from tokenwire_gateway.errors import bad_field
from tokenwire_gateway.openai.schemas import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    ContentPart,
    NamedToolChoice,
    ResponseFormat,
    SharedFields,
)

DEFAULT_MODEL_NAMES = frozenset({"", "tgi", "dummy"})
_ROLES: Mapping[str, text.Role.ValueType] = MappingProxyType(
    {
        "system": text.ROLE_SYSTEM,
        "developer": text.ROLE_DEVELOPER,
        "user": text.ROLE_USER,
        "assistant": text.ROLE_ASSISTANT,
        "tool": text.ROLE_TOOL,
    }
)
_TOOL_CHOICES: Mapping[str, text.ToolChoiceMode.ValueType] = MappingProxyType(
    {
        "auto": text.TOOL_CHOICE_MODE_AUTO,
        "none": text.TOOL_CHOICE_MODE_NONE,
        "required": text.TOOL_CHOICE_MODE_REQUIRED,
    }
)


def model_name(name: str | None) -> str:
    """The served name meant by `name`; empty for the default model, which some SDKs call tgi or dummy."""
    return "" if name is None or name in DEFAULT_MODEL_NAMES else name


def chat_request(body: ChatCompletionRequest) -> text.ChatRequest:
    """A ChatRequest with every field of `body`. Raises GatewayError for what does not fit together."""
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_field("top_logprobs", "needs logprobs to be true")
    request = text.ChatRequest(
        model=model_name(body.model),
        messages=chat_messages(body),
        tools=chat_tools(body),
        sampling=_sampling(body),
        stopping=_stopping(body, _chat_max_tokens(body)),
        constraint=_constraint(body.response_format),
        output=_output(body),
        scheduling=types.SchedulingOptions(priority=body.priority),
        cache=_cache(body),
        user=_user(body),
        labels=body.metadata or {},
        template_args_json=template_args(body),
        continue_final_message=body.continue_final_message,
    )
    if body.logprobs:
        request.output.logprobs.CopyFrom(types.LogprobsOptions(top_n=body.top_logprobs))
    _set_tool_choice(request, body)
    if body.reasoning_effort is not None:
        request.reasoning.effort = body.reasoning_effort
    return request


def completion_requests(body: CompletionRequest) -> list[text.GenerateRequest]:
    """One GenerateRequest for each prompt of `body`. Raises GatewayError for what does not fit together."""
    if body.echo and body.truncate_prompt_tokens is not None:
        raise bad_field("echo", "cannot go with truncate_prompt_tokens; leave one of them out")
    shared = text.GenerateRequest(
        model=model_name(body.model),
        sampling=_sampling(body),
        stopping=_stopping(body, body.max_tokens),
        constraint=_constraint(body.response_format),
        output=_output(body),
        scheduling=types.SchedulingOptions(priority=body.priority),
        cache=_cache(body),
        user=_user(body),
        labels=body.metadata or {},
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        add_special_tokens=body.add_special_tokens,
    )
    if body.best_of is not None:
        shared.sampling.best_of = body.best_of
    if body.logprobs is not None:
        shared.output.logprobs.top_n = body.logprobs
        if body.echo:
            shared.output.prompt_logprobs.top_n = body.logprobs
    return [_with_prompt(shared, prompt) for prompt in body.prompt]


def _with_prompt(shared: text.GenerateRequest, prompt: str | list[int]) -> text.GenerateRequest:
    request = text.GenerateRequest()
    request.CopyFrom(shared)
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
    return request


def chat_messages(body: ChatCompletionRequest) -> list[text.Message]:
    """The conversation."""
    return [_message(message, f"messages[{number}]") for number, message in enumerate(body.messages)]


def chat_tools(body: ChatCompletionRequest) -> list[text.Tool]:
    """The tools; none where there are none."""
    return [
        text.Tool(
            name=tool.function.name,
            description=tool.function.description or "",
            parameters_schema=_json(tool.function.parameters) if tool.function.parameters else "",
            strict=tool.function.strict,
        )
        for tool in body.tools or ()
    ]


def template_args(body: ChatCompletionRequest) -> str | None:
    """The chat template's further variables as JSON text."""
    return _json(body.chat_template_kwargs) if body.chat_template_kwargs else None


def _sampling(body: SharedFields) -> types.SamplingParams:
    return types.SamplingParams(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        typical_p=body.typical_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
        candidate_count=body.n,
        logit_bias=dict(_logit_bias(body.logit_bias or {})),
        allowed_token_ids=body.allowed_token_ids or (),
    )


def _logit_bias(given: Mapping[str, float]) -> Iterator[tuple[int, float]]:
    for key, bias in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) < 2**32):
            raise bad_field("logit_bias", f'{key[:40]!r} is not a token id; keys are token ids such as "42"')
        yield int(key), bias


def _stopping(body: SharedFields, max_tokens: int | None) -> types.StoppingCriteria:
    return types.StoppingCriteria(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        stop=body.stop or (),
        stop_token_ids=body.stop_token_ids or (),
        include_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
    )


def _chat_max_tokens(body: ChatCompletionRequest) -> int | None:
    if body.max_completion_tokens is None or body.max_tokens is None:
        return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if body.max_tokens != body.max_completion_tokens:
        raise bad_field("max_tokens", "differs from max_completion_tokens; send one of them")
    return body.max_tokens


def _output(body: SharedFields) -> types.OutputOptions:
    return types.OutputOptions(skip_special_tokens=body.skip_special_tokens)


def _cache(body: SharedFields) -> types.CacheOptions:
    return types.CacheOptions(salt=body.cache_salt, session_id=body.prompt_cache_key)


def _user(body: SharedFields) -> str:
    if body.user and body.safety_identifier and body.user != body.safety_identifier:
        raise bad_field("safety_identifier", "differs from user; send one of them")
    return body.user or body.safety_identifier or ""


def _constraint(form: ResponseFormat | None) -> types.OutputConstraint | None:
    if form is None or form.type == "text":
        return None
    if form.type == "regex":
        if not isinstance(form.value, str):
            raise bad_field("response_format.value", "must be the regular expression")
        return types.OutputConstraint(regex=form.value)
    if form.json_schema is not None:
        given = form.json_schema
        schema = types.JsonSchema(schema=_json(given.schema_), name=given.name, strict=given.strict)
        return types.OutputConstraint(json_schema=schema)
    if form.value is not None:
        given_text = form.value if isinstance(form.value, str) else _json(form.value)
        return types.OutputConstraint(json_schema=types.JsonSchema(schema=given_text))
    if form.type == "json_schema":
        raise bad_field("response_format.json_schema", "missing; it is required with type json_schema")
    return types.OutputConstraint(json_object=types.JsonObject())


def _set_tool_choice(request: text.ChatRequest, body: ChatCompletionRequest) -> None:
    if body.parallel_tool_calls is not None and request.tools:
        request.parallel_tool_calls = body.parallel_tool_calls
    if isinstance(body.tool_choice, NamedToolChoice):
        request.tool_choice.function_name = body.tool_choice.function.name
    elif body.tool_choice == "required" or (body.tool_choice is not None and request.tools):
        # Without tools, auto and none ask for nothing.
        request.tool_choice.mode = _TOOL_CHOICES[body.tool_choice]


def _message(message: ChatMessage, path: str) -> text.Message:
    parts = [_part(part, f"{path}.content[{number}]") for number, part in enumerate(message.content or ())]
    if message.refusal:
        parts.append(text.ContentPart(text=message.refusal))
    return text.Message(
        role=_ROLES[message.role],
        content=parts,
        name=message.name,
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning_content if message.reasoning is None else message.reasoning,
        tool_calls=[
            text.ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        ],
    )


def _part(part: ContentPart, path: str) -> text.ContentPart:
    given = {
        name: value
        for name in ("text", "refusal", "image_url", "input_audio")
        if (value := getattr(part, name)) is not None
    }
    if set(given) != {part.type}:
        raise bad_field(path, f"a part of type {part.type} has the field {part.type} and no other")
    if part.image_url is not None:
        return text.ContentPart(media=_image(part.image_url.url, f"{path}.image_url.url"))
    if part.input_audio is not None:
        data = _base64(part.input_audio.data, f"{path}.input_audio.data")
        return text.ContentPart(media=text.Media(data=data, mime_type=f"audio/{part.input_audio.format}"))
    return text.ContentPart(text=part.text or part.refusal or "")


def _image(url: str, path: str) -> text.Media:
    if not url.startswith("data:"):
        return text.Media(url=url)
    kind, comma, data = url.removeprefix("data:").partition(",")
    if not comma or not kind.endswith(";base64"):
        raise bad_field(path, "a data: URL must be data:<media type>;base64,<data>")
    return text.Media(data=_base64(data, path), mime_type=kind.removesuffix(";base64"))


def _base64(data: str, path: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_field(path, "not valid base64") from error


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
