"""Requests of OpenAI's API, with the further sampling options that other open servers have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from tokenwire_gateway.shapes import Int32, Int64, Shape, UInt32, only


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _text_as_part(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _top_k(value: Any) -> Any:
    # -1 is how other servers spell "off".
    return 0 if value == -1 and type(value) is int else value


class StreamOptions(Shape):
    """How a stream is told."""

    include_usage: bool | None = None
    include_obfuscation: only("leave it out", False) = None  # type: ignore[valid-type]


class JsonSchemaFormat(Shape):
    """The json_schema of a response_format."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Shape):
    """The form of the answer; `value` is how TGI and huggingface_hub bring a schema or a regular expression."""

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: JsonSchemaFormat | None = None
    value: dict[str, Any] | str | None = None


class SharedFields(Shape):
    """Fields of chat and legacy completions alike."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: UInt32 | None = None
    seed: Int64 | None = None
    stop: Annotated[list[str], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])] | None = None
    max_tokens: UInt32 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: only("leave it out", "in_memory", "in-memory") = None  # type: ignore[valid-type]
    service_tier: only("leave it out", "auto", "default") = None  # type: ignore[valid-type]
    store: only("responses are never stored; leave it out", False) = None  # type: ignore[valid-type]

    top_k: Annotated[UInt32, BeforeValidator(_top_k)] | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: UInt32 | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[UInt32] | None = None
    allowed_token_ids: list[UInt32] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None


class ImageUrl(Shape):
    """An image by address or data: URL."""

    url: str
    detail: only("leave it out", "auto") = None  # type: ignore[valid-type]


class InputAudio(Shape):
    """Sound as base64."""

    data: str
    format: str


class ContentPart(Shape):
    """One part of a message."""

    type: Literal["text", "image_url", "input_audio", "refusal"]
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None


class FunctionCall(Shape):
    """The function of a tool call."""

    name: str
    arguments: str


class ToolCall(Shape):
    """A call the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Shape):
    """One turn. Fields the API itself returns in a message are taken when they say nothing."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[list[ContentPart], BeforeValidator(_text_as_part, json_schema_input_type=str | list[ContentPart])]
        | None
    ) = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: only("leave it out", []) = None  # type: ignore[valid-type]
    audio: only("send the text instead") = None  # type: ignore[valid-type]
    function_call: only("use tool_calls") = None  # type: ignore[valid-type]


class Function(Shape):
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Shape):
    """A tool the model may use."""

    type: Literal["function"]
    function: Function


class ChosenFunction(Shape):
    """The name of the function that must be called."""

    name: str


class NamedToolChoice(Shape):
    """The tool that must be called."""

    type: Literal["function"] = "function"
    function: ChosenFunction


class ChatCompletionRequest(SharedFields):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: UInt32 | None = None
    logprobs: bool | None = None
    top_logprobs: UInt32 | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: only("it follows from continue_final_message; leave it out", True) = None  # type: ignore[valid-type]
    modalities: only("answers are text", ["text"]) = None  # type: ignore[valid-type]
    audio: only("answers are text") = None  # type: ignore[valid-type]
    prediction: only("leave it out") = None  # type: ignore[valid-type]
    web_search_options: only("leave it out") = None  # type: ignore[valid-type]
    verbosity: only("ask for it in the prompt", "medium") = None  # type: ignore[valid-type]
    functions: only("use tools", []) = None  # type: ignore[valid-type]
    function_call: only("use tool_choice", "none", "auto") = None  # type: ignore[valid-type]


def _prompts(value: Any) -> list[str | list[int]]:
    """A string, token ids, or a list of either, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("prompt_type", "Input should be a string, a list of strings, or token ids")
    if not value:
        raise PydanticCustomError("prompt_empty", "Input should not be an empty list")
    if all(_is_token(item) for item in value):
        return [value]
    if all(isinstance(item, str) for item in value):
        return value
    if all(isinstance(item, list) and item and all(_is_token(token) for token in item) for item in value):
        return value
    raise PydanticCustomError(
        "prompt_type", "Input should be a string, a list of strings, or non-empty lists of token ids"
    )


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


_PromptInput = str | list[str] | list[int] | list[list[int]]


class CompletionRequest(SharedFields):
    """Body of POST /v1/completions."""

    prompt: Annotated[Any, BeforeValidator(_prompts, json_schema_input_type=_PromptInput)]
    best_of: UInt32 | None = None
    logprobs: UInt32 | None = None
    echo: bool | None = None
    truncate_prompt_tokens: UInt32 | None = None
    add_special_tokens: bool | None = None
    suffix: only("put what follows into the prompt by the model's own fill-in-the-middle format", "") = None  # type: ignore[valid-type]
