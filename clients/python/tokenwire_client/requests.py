"""Requests from plain keyword arguments. What is not given stays unset in the proto."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage

from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import types_pb2
from tokenwire.v1.engine_pb2 import WatchLoadRequest
from tokenwire.v1.tokenization_pb2 import DetokenizeRequest, TokenizeRequest
from tokenwire_client.messages import json_text, message_of, tool_of
from tokenwire_client.options import CallOptions, MessageLike

# Where an option goes, when it is not the request's own field of the same name.
_RENAMED = MappingProxyType(
    {
        "return_text": ("output", "text"),
        "return_token_ids": ("output", "token_ids"),
        "return_prompt_token_ids": ("output", "prompt_token_ids"),
        "cache_salt": ("cache", "salt"),
        "cache_bypass": ("cache", "bypass"),
        "reasoning_effort": ("reasoning", "effort"),
        "reasoning_max_tokens": ("reasoning", "max_tokens"),
        "include_reasoning": ("reasoning", "include"),
    }
)
_GROUPS = ("sampling", "stopping", "output", "scheduling", "cache", "stream")
_CONSTRAINTS = ("json_schema", "json_object", "regex", "ebnf", "choices", "structural_tag")
_CALL = ("timeout", "request_id", "traceparent", "metadata")

_Options = Mapping[str, Any]
_Routes = Mapping[str, tuple[str, str]]
_M = TypeVar("_M", bound=ProtoMessage)


def generate_request(
    prompt: str | Iterable[int] | pb.GenerateRequest, options: _Options, *, stream: bool
) -> tuple[pb.GenerateRequest, CallOptions]:
    """The request and the options of its call. `prompt` is a text, token ids, or the whole request.

    Raises TypeError for an unknown option, TypeError or ValueError naming an option of a wrong type or range.
    """
    given, call = _split(options)
    if isinstance(prompt, pb.GenerateRequest):
        return _whole(prompt, given), call
    request = pb.GenerateRequest()
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(_token_ids(prompt, "prompt"))
        request.token_ids.SetInParent()
    own = {name: ("", name) for name in ("truncate_prompt_tokens", "add_special_tokens")}
    _fill(request, given, own | _routes(request, stream=stream))
    return request, call


def chat_request(
    messages: Iterable[MessageLike] | pb.ChatRequest, options: _Options, *, stream: bool
) -> tuple[pb.ChatRequest, CallOptions]:
    """The request and the options of its call. Raises as `generate_request` does."""
    given, call = _split(options)
    if isinstance(messages, pb.ChatRequest):
        return _whole(messages, given), call
    request = pb.ChatRequest(messages=_messages(messages))
    own = {name: ("", name) for name in ("tools", "tool_choice", "parallel_tool_calls", "continue_final_message")}
    own["template_args"] = ("", "template_args_json")
    _fill(request, given, own | _routes(request, stream=stream))
    return request, call


def tokenize_request(
    subject: str | Iterable[MessageLike] | TokenizeRequest, options: _Options, *, count_only: bool = False
) -> tuple[TokenizeRequest, CallOptions]:
    """The request to tokenize a text or a conversation, and the options of its call."""
    given, call = _split(options)
    if isinstance(subject, TokenizeRequest):
        request = TokenizeRequest()
        request.CopyFrom(_whole(subject, given))
    elif isinstance(subject, str):
        request = TokenizeRequest(text=subject)
        _fill(request, given, {name: ("", name) for name in ("model", "add_special_tokens", "offsets")})
    else:
        request = TokenizeRequest()
        request.chat.messages.extend(_messages(subject))
        fields = {name: ("chat", name) for name in ("tools", "add_generation_prompt", "continue_final_message")}
        fields |= {"template_args": ("chat", "template_args_json"), "model": ("", "model"), "offsets": ("", "offsets")}
        _fill(request, given, fields)
    if count_only:
        request.count_only = True
    return request, call


def detokenize_request(
    token_ids: Iterable[int] | DetokenizeRequest, options: _Options
) -> tuple[DetokenizeRequest, CallOptions]:
    """The request to turn tokens into text, and the options of its call."""
    given, call = _split(options)
    if isinstance(token_ids, DetokenizeRequest):
        return _whole(token_ids, given), call
    request = DetokenizeRequest(token_ids=_token_ids(token_ids, "token_ids"))
    _fill(request, given, {name: ("", name) for name in ("model", "skip_special_tokens")})
    return request, call


def watch_load_request(interval: float | timedelta | None) -> WatchLoadRequest:
    """The request for reports of the load every `interval` seconds."""
    return WatchLoadRequest(interval=None if interval is None else _duration(interval))


def _split(options: _Options) -> tuple[dict[str, Any], CallOptions]:
    call = cast("CallOptions", {name: options[name] for name in _CALL if name in options})
    return {name: value for name, value in options.items() if name not in _CALL and value is not None}, call


def _whole(request: _M, given: _Options) -> _M:
    if given:
        raise TypeError(f"{next(iter(given))}: a whole {type(request).__name__} was given; set the field in it")
    return request


def _routes(request: pb.GenerateRequest | pb.ChatRequest, *, stream: bool) -> dict[str, tuple[str, str]]:
    """Option to (message, field) of a generation request; the request itself is the message named ''."""
    kinds = {field.name: field.message_type for field in request.DESCRIPTOR.fields}
    routes = {name: ("", name) for name in ("model", "user", "labels")}
    renamed = {route: name for name, route in _RENAMED.items() if route[0] in kinds}
    for group in _GROUPS:
        kind = kinds[group]
        if kind is not None and (stream or group != "stream"):
            for field in kind.fields:
                routes[renamed.get((group, field.name), field.name)] = (group, field.name)
    routes |= {name: route for route, name in renamed.items()}
    return routes | {name: ("constraint", name) for name in _CONSTRAINTS}


def _fill(request: ProtoMessage, given: _Options, routes: _Routes) -> None:
    constraints = [name for name in given if routes.get(name, ("",))[0] == "constraint"]
    if len(constraints) > 1:
        raise ValueError(f"{constraints[1]}: {constraints[0]} is given too; an output has at most one constraint")
    for name, value in given.items():
        if name not in routes:
            near = difflib.get_close_matches(name, routes, n=1)
            raise TypeError(f"{name}: no such option here" + (f"; did you mean {near[0]}?" if near else ""))
        group, field = routes[name]
        try:
            _set(getattr(request, group) if group else request, field, value)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(str(error) if str(error).startswith(name) else f"{name}: {error}") from None


def _set(target: Any, field: str, value: Any) -> None:
    """Sets one field from what an option may hold for it."""
    current = getattr(target, field)
    if field in _CONVERTED:
        value = _CONVERTED[field](value)
    if isinstance(current, MutableMapping):
        current.update(value)
    elif isinstance(current, MutableSequence):
        current.extend([value] if isinstance(value, str) else value)
    elif isinstance(current, Duration):
        current.CopyFrom(_duration(value))
    elif isinstance(current, ProtoMessage):
        if value is not False:
            current.CopyFrom(value)
    else:
        setattr(target, field, value)


def _duration(value: float | timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=value))
    return duration


def _logprobs(value: object) -> object:
    if isinstance(value, bool):
        return types_pb2.LogprobsOptions() if value else False
    return types_pb2.LogprobsOptions(top_n=value) if isinstance(value, int) else value


def _json_schema(value: object) -> object:
    if isinstance(value, (str, Mapping)):
        return types_pb2.JsonSchema(schema=json_text(value))
    return value


def _tool_choice(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in ("auto", "none", "required"):
        raise ValueError(
            f"{value!r} is not auto, none or required; a function is chosen by ToolChoice(function_name=...)"
        )
    return pb.ToolChoice(mode=pb.ToolChoiceMode.Value(f"TOOL_CHOICE_MODE_{value.upper()}"))


def _choices(value: object) -> object:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError("expected several texts")
    return types_pb2.Choices(values=value)


def _messages(values: Iterable[MessageLike]) -> list[pb.Message]:
    if isinstance(values, (Mapping, pb.Message)):
        raise TypeError("messages: expected a list of messages, not one")
    return [message_of(value, f"messages[{idx}]") for idx, value in enumerate(values)]


def _token_ids(values: Iterable[int], name: str) -> list[int]:
    if isinstance(values, (bytes, Mapping, ProtoMessage)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a text or token ids, not {type(values).__name__}")
    return list(values)


_CONVERTED: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "logprobs": _logprobs,
        "prompt_logprobs": _logprobs,
        "json_schema": _json_schema,
        "json_object": lambda value: types_pb2.JsonObject() if value is True else value,
        "choices": _choices,
        "structural_tag": json_text,
        "template_args_json": json_text,
        "tool_choice": _tool_choice,
        "tools": lambda tools: [tool_of(tool, f"tools[{idx}]") for idx, tool in enumerate(tools)],
    }
)
