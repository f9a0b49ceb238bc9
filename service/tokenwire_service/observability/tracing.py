"""Spans of OpenTelemetry: one server span for a call, and under it what the engine did: queue, prefill, decode.

Attribute names are those of the GenAI conventions, as plain strings: their Python constants are deprecated. The engine
imports nothing of this; its spans are drawn here from the times it reports, which count from the call's arrival.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tokenwire_service.observability.telemetry import AttributeValue
from tokenwire_service.observability.trace import RequestSpan, TraceSettings

BACKEND = "tokenwire"
NAMES = MappingProxyType(
    {
        **{
            name: f"gen_ai.request.{name}"
            for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "stream", "presence_penalty")
        },
        "frequency_penalty": "gen_ai.request.frequency_penalty",
        "choice_count": "gen_ai.request.choice.count",
        "response_model": "gen_ai.response.model",
        "response_id": "gen_ai.response.id",
    }
)
MAX_NAME = 256
"""Characters kept of a model name a caller made up."""
# Codes that tell of the server's fault; the others are the caller's affair and leave the span's status unset.
SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class OpenTelemetryTracer:
    """Makes spans and hands them to an exporter in the background; a collector that is away costs calls nothing."""

    def __init__(
        self,
        settings: TraceSettings,
        version: str,
        exporter: SpanExporter | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        resource = {SERVICE_VERSION: version}
        if settings.service_name:
            resource[SERVICE_NAME] = settings.service_name
        self._provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter(settings)))
        self._tracer = self._provider.get_tracer("tokenwire_service", version)
        self._propagator = TraceContextTextMapPropagator()
        self._clock_ns = clock_ns

    def start(self, method: str, model: str, request_id: str, metadata: Mapping[str, str]) -> RequestSpan:
        # An explicit empty context: spans of other calls on this thread are never parents.
        parent = self._propagator.extract(metadata, context=otel_context.Context())
        start_ns = self._clock_ns()
        span = self._tracer.start_span(
            method, parent, SpanKind.SERVER, attributes=_call_attributes(method, model, request_id), start_time=start_ns
        )
        return OpenTelemetrySpan(self._tracer, span, start_ns, self._clock_ns)

    def close(self) -> None:
        """Export what is left, for at most a few seconds."""
        self._provider.force_flush(timeout_millis=3000)
        self._provider.shutdown()


def _exporter(settings: TraceSettings) -> SpanExporter:
    if settings.exporter == "console":
        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=settings.endpoint or None)


def _call_attributes(method: str, model: str, request_id: str) -> dict[str, str]:
    service, _, name = method.rpartition("/")
    attributes = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": name,
        "inference.backend": BACKEND,
        "gen_ai.provider.name": BACKEND,
        "tokenwire.request_id": request_id,
    }
    if model:
        attributes["model_id"] = attributes["gen_ai.request.model"] = model[:MAX_NAME]
    if name.startswith(("Chat", "Generate")):
        attributes["gen_ai.operation.name"] = "chat" if name.startswith("Chat") else "text_completion"
    return attributes


class OpenTelemetrySpan:
    """The span of one call. Times of the engine are seconds from `start_ns`."""

    def __init__(self, tracer: OtelTracer, span: Span, start_ns: int, clock_ns: Callable[[], int]) -> None:
        self._tracer = tracer
        self._span = span
        self._start_ns = start_ns
        self._clock_ns = clock_ns
        self._queue_s: float | None = None
        self._first_token_ns: int | None = None
        self._phases_drawn = False

    def attributes(self, attrs: Mapping[str, AttributeValue | None]) -> None:
        for name, value in attrs.items():
            if value is not None:
                self._span.set_attribute(name if "." in name else NAMES.get(name, f"tokenwire.{name}"), value)

    def admitted(self, queue_time_s: float, prompt_tokens: int, cached_tokens: int) -> None:
        self._queue_s = queue_time_s
        self._span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
        self._span.set_attribute("gen_ai.usage.cache_read.input_tokens", cached_tokens)

    def first_token(self) -> None:
        self._first_token_ns = self._clock_ns()
        elapsed_s = (self._first_token_ns - self._start_ns) / 1e9
        self._span.set_attribute("gen_ai.response.time_to_first_chunk", elapsed_s)

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
        self._span.set_attribute("gen_ai.response.finish_reasons", list(finish_reasons))
        self._span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
        self._span.set_attribute("gen_ai.usage.cache_read.input_tokens", cached_tokens)
        self._span.set_attribute("gen_ai.usage.output_tokens", completion_tokens)
        self._span.set_attribute("tokenwire.preemptions", preemptions)
        queue_s = self._queue_s or 0.0
        self._draw_phases(self._after(queue_s), self._after(queue_s + prefill_time_s), self._after(total_time_s))

    def ended(self, code: str, reason: str) -> None:
        end_ns = self._clock_ns()
        if not self._phases_drawn and self._queue_s is not None:
            self._draw_phases(self._after(self._queue_s), self._first_token_ns, end_ns)
        self._span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            self._span.set_attribute("error.type", reason or code)
        if code in SERVER_FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, reason or code))
        self._span.end(end_ns)

    def _after(self, seconds: float) -> int:
        return self._start_ns + int(seconds * 1e9)

    def _draw_phases(self, scheduled_ns: int, first_token_ns: int | None, end_ns: int) -> None:
        """Without a first token the request ended while its prompt was computed."""
        self._phases_drawn = True
        self._draw("queue", self._start_ns, scheduled_ns)
        self._draw("prefill", scheduled_ns, end_ns if first_token_ns is None else first_token_ns)
        if first_token_ns is not None:
            self._draw("decode", first_token_ns, end_ns)

    def _draw(self, name: str, start_ns: int, end_ns: int) -> None:
        child = self._tracer.start_span(
            f"engine.{name}", set_span_in_context(self._span), SpanKind.INTERNAL, start_time=start_ns
        )
        child.end(max(start_ns, end_ns))
