"""Keyword options of the calls. Each is unset unless given; None means unset too. Times are in seconds (or timedelta).

Meanings, ranges and defaults are those of the fields of the same name in tokenwire.v1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, TypedDict

from tokenwire.v1.text_generation_pb2 import Message, Tool, ToolChoice
from tokenwire.v1.types_pb2 import JsonSchema, LogprobsOptions

Metadata = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
# A proto, or the mapping OpenAI's API knows: {"role": "user", "content": "hi"}.
MessageLike = Message | Mapping[str, Any]
# A proto, or a mapping: {"name": ..., "description": ..., "parameters": {...}}, alone or under "function".
ToolLike = Tool | Mapping[str, Any]
Seconds = float | timedelta


class CallOptions(TypedDict, total=False):
    """Of every call. timeout None waits without end; not given, it is the client's."""

    timeout: float | None
    request_id: str | None
    traceparent: str | None
    metadata: Metadata | None


class ModelOption(TypedDict, total=False):
    """Which model answers; the server's only or default one when unset."""

    model: str | None


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen: SamplingParams."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    typical_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    context_frequency_penalty: float | None
    seed: int | None
    candidate_count: int | None
    best_of: int | None
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: Iterable[int] | None
    watermark: bool | None


class StoppingOptions(TypedDict, total=False):
    """When candidates end: StoppingCriteria."""

    max_tokens: int | None
    min_tokens: int | None
    stop: str | Iterable[str] | None
    stop_token_ids: Iterable[int] | None
    include_stop: bool | None
    ignore_eos: bool | None
    time_limit: Seconds | None


class ConstraintOptions(TypedDict, total=False):
    """The form the output must have: OutputConstraint, at most one."""

    json_schema: JsonSchema | Mapping[str, Any] | str | None
    json_object: bool | None
    regex: str | None
    ebnf: str | None
    choices: Iterable[str] | None
    structural_tag: Mapping[str, Any] | str | None


class OutputOptions(TypedDict, total=False):
    """What is returned: OutputOptions. logprobs: True, or how many likeliest tokens to add, or the proto."""

    return_text: bool | None
    return_token_ids: bool | None
    return_prompt_token_ids: bool | None
    logprobs: bool | int | LogprobsOptions | None
    prompt_logprobs: bool | int | LogprobsOptions | None
    skip_special_tokens: bool | None


class SchedulingOptions(TypedDict, total=False):
    """Scheduling and prefix cache: SchedulingOptions and CacheOptions."""

    priority: int | None
    max_queue_time: Seconds | None
    cache_salt: str | None
    cache_bypass: bool | None
    session_id: str | None


class BookkeepingOptions(TypedDict, total=False):
    """For logs and traces."""

    user: str | None
    labels: Mapping[str, str] | None


class CommonOptions(
    CallOptions,
    ModelOption,
    SamplingOptions,
    StoppingOptions,
    ConstraintOptions,
    OutputOptions,
    SchedulingOptions,
    BookkeepingOptions,
    total=False,
):
    """Of all four generation calls."""


class StreamOptions(TypedDict, total=False):
    """How a stream is cut into events: StreamOptions."""

    min_tokens_per_event: int | None
    max_delay: Seconds | None
    usage_per_event: bool | None


class GenerateOptions(CommonOptions, total=False):
    """Of generate."""

    truncate_prompt_tokens: int | None
    add_special_tokens: bool | None


class GenerateStreamOptions(GenerateOptions, StreamOptions, total=False):
    """Of generate_stream."""


class ChatOptions(CommonOptions, total=False):
    """Of chat. tool_choice takes a function's name by ToolChoice(function_name=...)."""

    tools: Sequence[ToolLike] | None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None
    parallel_tool_calls: bool | None
    reasoning_effort: str | None
    reasoning_max_tokens: int | None
    include_reasoning: bool | None
    template_args: Mapping[str, Any] | str | None
    continue_final_message: bool | None


class ChatStreamOptions(ChatOptions, StreamOptions, total=False):
    """Of chat_stream."""


class CountOptions(CallOptions, ModelOption, total=False):
    """Of count_tokens. add_special_tokens goes with a text; the others with a conversation."""

    add_special_tokens: bool | None
    tools: Sequence[ToolLike] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    template_args: Mapping[str, Any] | str | None


class TokenizeOptions(CountOptions, total=False):
    """Of tokenize. offsets adds each token's place in the text."""

    offsets: bool | None


class DetokenizeOptions(CallOptions, ModelOption, total=False):
    """Of detokenize."""

    skip_special_tokens: bool | None
