"""Folds stream events into the response the unary call would have returned."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tokenwire.v1.text_generation_pb2 import (
    ROLE_ASSISTANT,
    CandidateFinished,
    ChatResponse,
    ChatStreamResponse,
    GenerateResponse,
    GenerateStreamResponse,
    Message,
    PromptDetails,
    StreamCompleted,
    StreamStarted,
    TextDelta,
    ToolCallDelta,
)
from tokenwire.v1.types_pb2 import Finish, TokenLogprobs, Usage
from tokenwire_client.results import ChatCompletion, Generation

E_contra = TypeVar("E_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
_Response = TypeVar("_Response", GenerateResponse, ChatResponse)


class Accumulator(Protocol[E_contra, R_co]):
    """Takes events one by one and tells what they amount to."""

    completed: bool

    def add(self, event: E_contra, /) -> None:
        """Takes one event."""

    def text(self, event: E_contra, index: int, /) -> str:
        """The text `event` adds to candidate `index`."""

    def result(self) -> R_co:
        """What the events so far amount to."""


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: io.StringIO = field(default_factory=io.StringIO)


@dataclass(slots=True)
class _Part:
    """One candidate so far. Text is kept outside protos, which would copy it with every delta."""

    text: io.StringIO = field(default_factory=io.StringIO)
    reasoning: io.StringIO = field(default_factory=io.StringIO)
    calls: dict[int, _Call] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    logprobs: TokenLogprobs | None = None
    token_count: int = 0
    finish: Finish | None = None

    def add_tokens(self, delta: TextDelta) -> None:
        self.token_count += delta.token_count
        if delta.token_ids:
            self.token_ids.extend(delta.token_ids)
        if delta.HasField("logprobs"):
            if self.logprobs is None:
                self.logprobs = TokenLogprobs()
            self.logprobs.MergeFrom(delta.logprobs)

    def message(self) -> Message:
        """The assistant's message: with a text, if only an empty one, unless it is all reasoning or calls."""
        message = Message(role=ROLE_ASSISTANT)
        text, reasoning = self.text.getvalue(), self.reasoning.getvalue()
        if text or not (reasoning or self.calls):
            message.content.add(text=text)
        if reasoning:
            message.reasoning = reasoning
        for _, call in sorted(self.calls.items()):
            message.tool_calls.add(id=call.id, name=call.name, arguments=call.arguments.getvalue())
        return message


class _Fold(Generic[_Response]):
    """What the two kinds of stream have in common."""

    def __init__(self, response: type[_Response]) -> None:
        self._response: _Response = response()
        self._parts: dict[int, _Part] = {}
        self.completed = False

    def _part(self, index: int) -> _Part:
        part = self._parts.get(index)
        if part is None:
            part = self._parts[index] = _Part()
        return part

    def _started(self, started: StreamStarted) -> None:
        self._response.info.CopyFrom(started.info)
        self._response.usage.prompt_tokens = started.prompt_tokens
        self._response.usage.cached_prompt_tokens = started.cached_prompt_tokens

    def _prompt(self, chunk: PromptDetails) -> None:
        known = self._response.prompt
        if not self._response.HasField("prompt"):
            known.offset = chunk.offset
        known.token_ids.extend(chunk.token_ids)
        if chunk.HasField("logprobs"):
            known.logprobs.MergeFrom(chunk.logprobs)

    def _usage(self, usage: Usage) -> None:
        self._response.usage.CopyFrom(usage)

    def _finished(self, finished: CandidateFinished) -> None:
        self._part(finished.index).finish = finished.finish

    def _completed(self, completed: StreamCompleted) -> None:
        self._usage(completed.usage)
        self._response.timing.CopyFrom(completed.timing)
        self.completed = True

    def _snapshot(self) -> _Response:
        response = type(self._response)()
        response.CopyFrom(self._response)
        for index, part in sorted(self._parts.items()):
            candidate = response.candidates.add(index=index, token_ids=part.token_ids, token_count=part.token_count)
            if part.logprobs is not None:
                candidate.logprobs.CopyFrom(part.logprobs)
            if part.finish is not None:
                candidate.finish.CopyFrom(part.finish)
        if not self.completed:
            counted = sum(part.token_count for part in self._parts.values())
            response.usage.completion_tokens = max(response.usage.completion_tokens, counted)
        return response


class GenerateAccumulator(_Fold[GenerateResponse]):
    """Accumulates GenerateStream."""

    def __init__(self) -> None:
        super().__init__(GenerateResponse)

    def add(self, event: GenerateStreamResponse, /) -> None:
        kind = event.WhichOneof("event")
        if kind == "delta":
            self._delta(event.delta)
        elif kind == "started":
            self._started(event.started)
        elif kind == "prompt":
            self._prompt(event.prompt)
        elif kind == "candidate_finished":
            self._finished(event.candidate_finished)
        elif kind == "completed":
            self._completed(event.completed)

    def text(self, event: GenerateStreamResponse, index: int, /) -> str:
        return event.delta.text if event.HasField("delta") and event.delta.index == index else ""

    def _delta(self, delta: TextDelta) -> None:
        part = self._part(delta.index)
        part.text.write(delta.text)
        part.add_tokens(delta)
        if delta.HasField("usage"):
            self._usage(delta.usage)

    def result(self) -> Generation:
        response = self._snapshot()
        for candidate in response.candidates:
            candidate.text = self._parts[candidate.index].text.getvalue()
        return Generation(response)


class ChatAccumulator(_Fold[ChatResponse]):
    """Accumulates ChatStream."""

    def __init__(self) -> None:
        super().__init__(ChatResponse)

    def add(self, event: ChatStreamResponse, /) -> None:
        kind = event.WhichOneof("event")
        if kind == "content":
            self._delta(event.content, self._part(event.content.index).text)
        elif kind == "reasoning":
            self._delta(event.reasoning, self._part(event.reasoning.index).reasoning)
        elif kind == "tool_call":
            self._tool_call(event.tool_call)
        elif kind == "started":
            self._started(event.started)
        elif kind == "prompt":
            self._prompt(event.prompt)
        elif kind == "candidate_finished":
            self._finished(event.candidate_finished)
        elif kind == "completed":
            self._completed(event.completed)

    def text(self, event: ChatStreamResponse, index: int, /) -> str:
        return event.content.text if event.HasField("content") and event.content.index == index else ""

    def _delta(self, delta: TextDelta, into: io.StringIO) -> None:
        into.write(delta.text)
        self._part(delta.index).add_tokens(delta)
        if delta.HasField("usage"):
            self._usage(delta.usage)

    def _tool_call(self, delta: ToolCallDelta) -> None:
        part = self._part(delta.index)
        call = part.calls.setdefault(delta.call_index, _Call())
        call.id = call.id or delta.id
        call.name = call.name or delta.name
        call.arguments.write(delta.arguments)
        part.token_count += delta.token_count

    def result(self) -> ChatCompletion:
        response = self._snapshot()
        for candidate in response.candidates:
            candidate.message.CopyFrom(self._parts[candidate.index].message())
        return ChatCompletion(response)
