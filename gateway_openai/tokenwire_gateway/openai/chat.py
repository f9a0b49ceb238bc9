"""Chat answers in OpenAI's shapes: whole, and as a stream of chunks."""

from __future__ import annotations

from typing import Any

from tokenwire.v1 import text_generation_pb2 as text
from tokenwire.v1 import types_pb2 as types
from tokenwire_gateway.facts import RequestFacts
from tokenwire_gateway.openai.common import ChunkFrame, finish_reason, head, usage_body
from tokenwire_gateway.sse import frame
from tokenwire_gateway.tokens import lossy, tokens_of

CHUNK = "chat.completion.chunk"


def chat_body(answer: text.ChatResponse, with_logprobs: bool) -> dict[str, Any]:
    """A chat.completion object."""
    choices = [_choice(number, candidate, with_logprobs) for number, candidate in enumerate(answer.candidates)]
    return {
        **head("chatcmpl", "chat.completion", answer.info),
        "choices": choices,
        "usage": usage_body(answer.usage),
    }


def _choice(number: int, candidate: text.ChatCandidate, with_logprobs: bool) -> dict[str, Any]:
    said = candidate.message
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(part.text for part in said.content),
        "refusal": None,
    }
    if said.HasField("reasoning"):
        message["reasoning_content"] = said.reasoning
    if said.tool_calls:
        message["content"] = message["content"] or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in said.tool_calls
        ]
    return {
        "index": number,
        "message": message,
        "logprobs": logprobs_body(candidate.logprobs) if with_logprobs else None,
        "finish_reason": finish_reason(candidate.finish),
    }


def logprobs_body(columns: types.TokenLogprobs) -> dict[str, Any]:
    """Log-probabilities in the shape of chat."""
    return {
        "content": [
            {
                **_entry(token.bytes, token.logprob),
                "top_logprobs": [_entry(other.bytes, other.logprob) for other in token.alternatives],
            }
            for token in tokens_of(columns)
        ],
        "refusal": None,
    }


def _entry(token: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": lossy(token), "logprob": logprob, "bytes": list(token)}


class ChatChunks:
    """Turns the events of one ChatStream into chunks, as server-sent events.

    choices: number of candidates. include_usage: a last chunk tells usage, and the others say null.
    """

    def __init__(self, facts: RequestFacts, choices: int, with_logprobs: bool, include_usage: bool) -> None:
        self._facts = facts
        self._choices = choices
        self._with_logprobs = with_logprobs
        self._include_usage = include_usage
        self._head: dict[str, Any] = {}
        self._frame: ChunkFrame | None = None

    def on(self, event: text.ChatStreamResponse | str) -> bytes:
        """The chunks that `event` calls for; empty for none. Text is the first candidate's next content."""
        if isinstance(event, str):
            self._facts.saw_first_token()
            return self._chunk(0, {"content": event})
        match event.WhichOneof("event"):
            case "started":
                return self._started(event.started)
            case "content":
                return self._delta(event.content, "content")
            case "reasoning":
                return self._delta(event.reasoning, "reasoning_content")
            case "tool_call":
                return self._tool_call(event.tool_call)
            case "candidate_finished":
                finished = event.candidate_finished
                return self._chunk(finished.index, {}, finish=finish_reason(finished.finish))
            case "completed":
                return self._completed(event.completed)
        return b""

    def _started(self, started: text.StreamStarted) -> bytes:
        self._facts.model = started.info.model
        self._head = head("chatcmpl", CHUNK, started.info)
        if self._include_usage:
            self._head["usage"] = None
        self._frame = ChunkFrame(self._head, "delta")
        first = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk(index, first) for index in range(self._choices))

    def _delta(self, delta: text.TextDelta, name: str) -> bytes:
        tokens = delta.HasField("logprobs") and bool(delta.logprobs.token_ids)
        if not delta.text and not (self._with_logprobs and tokens):
            return b""
        self._facts.saw_first_token()
        logprobs = logprobs_body(delta.logprobs) if self._with_logprobs and tokens else None
        return self._chunk(delta.index, {name: delta.text}, logprobs)

    def _tool_call(self, piece: text.ToolCallDelta) -> bytes:
        self._facts.saw_first_token()
        call: dict[str, Any] = {"index": piece.call_index, "function": {"arguments": piece.arguments}}
        if piece.id:
            call |= {"id": piece.id, "type": "function"}
        if piece.name:
            call["function"]["name"] = piece.name
        return self._chunk(piece.index, {"tool_calls": [call]})

    def _completed(self, completed: text.StreamCompleted) -> bytes:
        self._facts.completed(completed.usage, completed.timing)
        if not self._include_usage:
            return b""
        return frame({**self._head, "choices": [], "usage": usage_body(completed.usage)})

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> bytes:
        assert self._frame is not None
        return self._frame(index, delta, logprobs, finish)
