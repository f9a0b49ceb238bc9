"""Answers of generation RPCs, and the streams that amount to them."""

from __future__ import annotations

from tokenwire.v1.text_generation_pb2 import (
    ROLE_ASSISTANT,
    ChatResponse,
    ChatStreamResponse,
    GenerateResponse,
    GenerateStreamResponse,
)
from tokenwire.v1.types_pb2 import FINISH_REASON_STOP, FINISH_REASON_TOOL_CALLS, ResponseInfo

PIECES = ("Hello", ", ", "wörld", " 👋🏽")
TEXT = "".join(PIECES)


def info() -> ResponseInfo:
    made = ResponseInfo(response_id="gen-1", model="tiny", fingerprint="f", seed=7)
    made.create_time.seconds = 1_700_000_000
    return made


def generate_response() -> GenerateResponse:
    """Two candidates; the first says TEXT."""
    response = GenerateResponse(info=info())
    first = response.candidates.add(index=0, text=TEXT, token_count=4)
    first.finish.reason = FINISH_REASON_STOP
    first.finish.stop = "\n"
    second = response.candidates.add(index=1, text="Bye", token_count=1)
    second.finish.reason = FINISH_REASON_STOP
    second.finish.stop_token_id = 2
    response.usage.prompt_tokens = 3
    response.usage.cached_prompt_tokens = 1
    response.usage.completion_tokens = 5
    response.timing.total_time.nanos = 5_000_000
    return response


def generate_events() -> list[GenerateStreamResponse]:
    """A stream that amounts to `generate_response`."""
    whole = generate_response()
    started = GenerateStreamResponse()
    started.started.info.CopyFrom(whole.info)
    started.started.prompt_tokens = whole.usage.prompt_tokens
    started.started.cached_prompt_tokens = whole.usage.cached_prompt_tokens
    events = [started]
    for piece in PIECES:
        events.append(GenerateStreamResponse())
        events[-1].delta.text = piece
        events[-1].delta.token_count = 1
    events.insert(3, GenerateStreamResponse())
    events[3].delta.index = 1
    events[3].delta.text = "Bye"
    events[3].delta.token_count = 1
    for candidate in reversed(whole.candidates):
        events.append(GenerateStreamResponse())
        events[-1].candidate_finished.index = candidate.index
        events[-1].candidate_finished.finish.CopyFrom(candidate.finish)
    events.append(GenerateStreamResponse())
    events[-1].completed.usage.CopyFrom(whole.usage)
    events[-1].completed.timing.CopyFrom(whole.timing)
    return events


def chat_response() -> ChatResponse:
    """One candidate that reasons, says TEXT and calls two tools."""
    response = ChatResponse(info=info())
    candidate = response.candidates.add(index=0, token_count=10)
    candidate.message.role = ROLE_ASSISTANT
    candidate.message.content.add(text=TEXT)
    candidate.message.reasoning = "I greet."
    candidate.message.tool_calls.add(id="call-1", name="wave", arguments='{"hand": "left"}')
    candidate.message.tool_calls.add(id="call-2", name="nod", arguments="{}")
    candidate.finish.reason = FINISH_REASON_TOOL_CALLS
    response.usage.prompt_tokens = 3
    response.usage.completion_tokens = 10
    response.usage.reasoning_tokens = 2
    response.timing.total_time.nanos = 5_000_000
    return response


def chat_events() -> list[ChatStreamResponse]:
    """A stream that amounts to `chat_response`."""
    whole = chat_response()
    events = [ChatStreamResponse()]
    events[-1].started.info.CopyFrom(whole.info)
    events[-1].started.prompt_tokens = whole.usage.prompt_tokens
    for piece in ("I ", "greet."):
        events.append(ChatStreamResponse())
        events[-1].reasoning.text = piece
        events[-1].reasoning.token_count = 1
    for piece in PIECES:
        events.append(ChatStreamResponse())
        events[-1].content.text = piece
        events[-1].content.token_count = 1
    for number, call_id, name, arguments in (
        (0, "call-1", "wave", '{"hand"'),
        (0, "", "", ': "left"}'),
        (1, "call-2", "nod", "{"),
        (1, "", "", "}"),
    ):
        events.append(ChatStreamResponse())
        events[-1].tool_call.call_index = number
        events[-1].tool_call.id = call_id
        events[-1].tool_call.name = name
        events[-1].tool_call.arguments = arguments
        events[-1].tool_call.token_count = 1
    events.append(ChatStreamResponse())
    events[-1].candidate_finished.finish.CopyFrom(whole.candidates[0].finish)
    events.append(ChatStreamResponse())
    events[-1].completed.usage.CopyFrom(whole.usage)
    events[-1].completed.timing.CopyFrom(whole.timing)
    return events
