"""What the RPC layer tells about its calls, as a protocol: `recorder.py` turns it into metrics and spans.

Methods are cheap, never block and never raise; none of them takes prompts or generated text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tokenwire_service.core.events import EngineStats
from tokenwire_service.engine.client import EngineState

AttributeValue = str | bool | int | float | Sequence[str]


class RequestTelemetry(Protocol):
    """The story of one call, in the order admitted, tokens*, completed, ended; each but `ended` may be missing."""

    def attributes(self, **attrs: AttributeValue | None) -> None:
        """Facts about the call for its span; None values are left out.

        `max_tokens`, `temperature`, `top_p`, `top_k`, `seed`, `stream`, `presence_penalty`, `frequency_penalty` and
        `choice_count` become `gen_ai.request.*`, `response_model` and `response_id` become `gen_ai.response.*`; a name
        with a dot is taken as it is (`**{"a.b": 1}`), any other becomes `tokenwire.<name>`.
        """
        ...

    def admitted(self, queue_time_s: float, prompt_tokens: int, cached_tokens: int) -> None:
        """The engine scheduled the request for the first time, `queue_time_s` after it arrived."""
        ...

    def tokens(self, num: int, *, num_candidates: int = 1) -> None:
        """`num` new tokens of `num_candidates` candidates were taken from the engine just now."""
        ...

    def completed(
        self,
        finish_reasons: Sequence[str],
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        prefill_time_s: float,
        total_time_s: float,
        preemptions: int,
    ) -> None:
        """The engine ended the request well. `finish_reasons`: one per candidate, `FinishReason` names in lower case.

        Times as in `core.events.Completed`.
        """
        ...

    def ended(self, code: str, reason: str = "") -> None:
        """The call ended, well or badly; exactly once (later calls do nothing).

        `code` is the gRPC status name (`OK`, `INVALID_ARGUMENT`, `CANCELLED`), `reason` the ErrorInfo reason, empty for
        OK and for codes that have none.
        """
        ...


class Telemetry(Protocol):
    """Where a service tells what it does."""

    def request(self, method: str, model: str, request_id: str, metadata: Mapping[str, str]) -> RequestTelemetry:
        """A call arrived.

        `method` is the RPC's full name (`tokenwire.v1.TextGenerationService/ChatStream`) from the server's own table,
        never text a caller chose; `model` the name the caller asked for; `metadata` the call's text metadata, keys in
        lower case, of which `traceparent` and `tracestate` are read.
        """
        ...

    def observe_engine(self, stats: EngineStats, state: EngineState) -> None:
        """The engine's latest snapshot and state; tell at least every change of state. Any thread."""
        ...


class NullRequestTelemetry:
    """Records nothing about a call."""

    def attributes(self, **attrs: AttributeValue | None) -> None:
        pass

    def admitted(self, queue_time_s: float, prompt_tokens: int, cached_tokens: int) -> None:
        pass

    def tokens(self, num: int, *, num_candidates: int = 1) -> None:
        pass

    def completed(
        self,
        finish_reasons: Sequence[str],
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        prefill_time_s: float,
        total_time_s: float,
        preemptions: int,
    ) -> None:
        pass

    def ended(self, code: str, reason: str = "") -> None:
        pass


class NullTelemetry:
    """Records nothing."""

    def request(self, method: str, model: str, request_id: str, metadata: Mapping[str, str]) -> RequestTelemetry:
        return NullRequestTelemetry()

    def observe_engine(self, stats: EngineStats, state: EngineState) -> None:
        pass
