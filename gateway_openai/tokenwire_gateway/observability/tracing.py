"""One span for each request, handed on to the service as traceparent. Off unless asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from tokenwire_gateway.config import GatewayConfig
from tokenwire_gateway.facts import RequestFacts

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_OPERATIONS = (("/v1/chat/completions", "chat"), ("/", "text_completion"), ("/v1/completions", "text_completion"))

# Called when the request is over, with the route and nothing else that the facts do not hold.
Finish = Callable[[str], None]


class Tracing:
    """Spans by OpenTelemetry; without a provider, the caller's traceparent is handed on as it came."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider

    def span(self, method: str, path: str, facts: RequestFacts) -> AbstractContextManager[Finish]:
        """The span of a request, the caller's as its parent. `facts.traceparent` becomes the span's."""
        if self._provider is None:
            return _untraced()
        return _traced(self._provider, method, path, facts)

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


@contextmanager
def _untraced() -> Iterator[Finish]:
    yield lambda route: None


@contextmanager
def _traced(provider: TracerProvider, method: str, path: str, facts: RequestFacts) -> Iterator[Finish]:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    parent = propagator.extract({"traceparent": facts.traceparent, "tracestate": facts.tracestate})
    tracer = provider.get_tracer("tokenwire_gateway")
    attributes = {"http.request.method": method, "url.path": path, "tokenwire.request_id": facts.request_id}
    with tracer.start_as_current_span(method, context=parent, kind=SpanKind.SERVER, attributes=attributes) as span:
        carrier: dict[str, str] = {}
        propagator.inject(carrier)
        facts.traceparent = carrier.get("traceparent", facts.traceparent)
        facts.tracestate = carrier.get("tracestate", facts.tracestate)
        yield lambda route: _finish(span, method, route, facts)


def _finish(span: Span, method: str, route: str, facts: RequestFacts) -> None:
    from opentelemetry.trace import StatusCode

    span.update_name(f"{method} {route}")
    span.set_attributes({"http.route": route, "http.response.status_code": facts.status})
    if facts.model:
        operation = dict(_OPERATIONS).get(route, "text_completion")
        span.set_attributes(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "tokenwire",
                "gen_ai.response.model": facts.model,
                "inference.backend": "tokenwire",
                "model_id": facts.model,
            }
        )
    if facts.usage is not None:
        span.set_attribute("gen_ai.usage.input_tokens", facts.usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", facts.usage.completion_tokens)
    if facts.first_token_s is not None:
        span.set_attribute("gen_ai.response.time_to_first_chunk", facts.first_token_s)
    if facts.failure or facts.status >= 500:
        span.set_attribute("error.type", facts.failure or str(facts.status))
        span.set_status(StatusCode.ERROR)


def open_tracing(config: GatewayConfig) -> Tracing:
    """Tracing by OTLP over gRPC where the configuration asks for it; the SDK reads the other OTEL_ variables itself."""
    if not config.tracing:
        return Tracing(None)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource({"service.name": config.otlp_service_name}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create().merge(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.otlp_endpoint or None)))
    return Tracing(provider)
