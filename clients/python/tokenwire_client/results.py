"""What unary calls return and streams accumulate to: thin frozen views of the response protos."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from tokenwire.v1.text_generation_pb2 import (
    Candidate,
    ChatCandidate,
    ChatResponse,
    GenerateResponse,
    Message,
    ToolCall,
)
from tokenwire.v1.types_pb2 import FinishReason as ProtoFinishReason
from tokenwire.v1.types_pb2 import Timing, Usage


class FinishReason(enum.StrEnum):
    """Why a candidate ended; the names of tokenwire.v1.FinishReason in lower case."""

    UNSPECIFIED = "unspecified"
    STOP = "stop"
    MAX_TOKENS = "max_tokens"
    CONTEXT_LENGTH = "context_length"
    TOOL_CALLS = "tool_calls"
    TIME_LIMIT = "time_limit"
    CONTENT_FILTER = "content_filter"

    @classmethod
    def of(cls, value: ProtoFinishReason.ValueType) -> FinishReason:
        """The reason of a proto value; UNSPECIFIED for one this client does not know."""
        try:
            return cls[ProtoFinishReason.Name(value).removeprefix("FINISH_REASON_")]
        except (KeyError, ValueError):
            return cls.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to `generate`: shortcuts to the first candidate; `raw` is the whole response."""

    raw: GenerateResponse

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The candidates; with best_of, best first."""
        return self.raw.candidates

    @property
    def text(self) -> str:
        """Text of the first candidate."""
        return self.raw.candidates[0].text if self.raw.candidates else ""

    @property
    def token_ids(self) -> Sequence[int]:
        """Generated tokens of the first candidate; empty unless asked for by return_token_ids."""
        return self.raw.candidates[0].token_ids if self.raw.candidates else ()

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first candidate ended."""
        return (
            FinishReason.of(self.raw.candidates[0].finish.reason) if self.raw.candidates else FinishReason.UNSPECIFIED
        )

    @property
    def usage(self) -> Usage:
        """Tokens counted."""
        return self.raw.usage

    @property
    def timing(self) -> Timing:
        """Time spent."""
        return self.raw.timing

    @property
    def id(self) -> str:
        """Id of the response, made by the server."""
        return self.raw.info.response_id

    @property
    def model(self) -> str:
        """Served name of the model that answered."""
        return self.raw.info.model

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """The answer to `chat`: shortcuts to the first candidate; `raw` is the whole response."""

    raw: ChatResponse

    @property
    def candidates(self) -> Sequence[ChatCandidate]:
        """The candidates; with best_of, best first."""
        return self.raw.candidates

    @property
    def message(self) -> Message:
        """Message of the first candidate, ready to be appended to the conversation."""
        return self.raw.candidates[0].message if self.raw.candidates else Message()

    @property
    def text(self) -> str:
        """Text of the first candidate's message, without its reasoning."""
        return "".join(part.text for part in self.message.content)

    @property
    def reasoning(self) -> str:
        """Reasoning of the first candidate's message."""
        return self.message.reasoning

    @property
    def tool_calls(self) -> Sequence[ToolCall]:
        """Calls the first candidate made."""
        return self.message.tool_calls

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first candidate ended."""
        return (
            FinishReason.of(self.raw.candidates[0].finish.reason) if self.raw.candidates else FinishReason.UNSPECIFIED
        )

    @property
    def usage(self) -> Usage:
        """Tokens counted."""
        return self.raw.usage

    @property
    def timing(self) -> Timing:
        """Time spent."""
        return self.raw.timing

    @property
    def id(self) -> str:
        """Id of the response, made by the server."""
        return self.raw.info.response_id

    @property
    def model(self) -> str:
        """Served name of the model that answered."""
        return self.raw.info.model

    def __str__(self) -> str:
        return self.text
