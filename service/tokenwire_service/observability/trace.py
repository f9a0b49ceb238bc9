"""What a tracer is, whether there is one, and the one that does nothing.

OpenTelemetry itself is only imported (`tracing.py`) when tracing is on, so that a start without it pays nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenwire_service.errors import ConfigError
from tokenwire_service.observability.telemetry import AttributeValue

EXPORTERS = ("otlp", "console")


class RequestSpan(Protocol):
    """The span of one call; events as in `RequestTelemetry`."""

    def attributes(self, attrs: Mapping[str, AttributeValue | None]) -> None: ...

    def admitted(self, queue_time_s: float, prompt_tokens: int, cached_tokens: int) -> None: ...

    def first_token(self) -> None: ...

    def completed(
        self,
        finish_reasons: Sequence[str],
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        prefill_time_s: float,
        total_time_s: float,
        preemptions: int,
    ) -> None: ...

    def ended(self, code: str, reason: str) -> None: ...


class Tracer(Protocol):
    """Makes the spans of calls."""

    def start(self, method: str, model: str, request_id: str, metadata: Mapping[str, str]) -> RequestSpan: ...

    def close(self) -> None: ...


class NullSpan:
    """Traces nothing."""

    def attributes(self, attrs: Mapping[str, AttributeValue | None]) -> None:
        pass

    def admitted(self, queue_time_s: float, prompt_tokens: int, cached_tokens: int) -> None:
        pass

    def first_token(self) -> None:
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

    def ended(self, code: str, reason: str) -> None:
        pass


class NullTracer:
    """Traces nothing."""

    def start(self, method: str, model: str, request_id: str, metadata: Mapping[str, str]) -> RequestSpan:
        return NullSpan()

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Where spans go."""

    exporter: str
    """One of EXPORTERS."""
    endpoint: str
    """OTLP collector; empty leaves it to the standard variables and their default, http://localhost:4317."""
    service_name: str
    """Empty leaves it to the standard variables."""


def trace_settings(endpoint: str, service_name: str, environ: Mapping[str, str]) -> TraceSettings | None:
    """Whether and where to trace: `endpoint` (--otlp-endpoint) or the standard OTEL variables; None when off.

    Raises ConfigError for an exporter or protocol that is not built in.
    """
    exporter = _exporter(endpoint, environ)
    if exporter is None:
        return None
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if exporter == "otlp" and environ.get(name, "grpc") not in ("grpc", ""):
            raise ConfigError(
                f"{name}={environ[name]}: only grpc is supported; point the endpoint at a gRPC port (4317)"
            )
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    # A host:port without a scheme means plain text, as in TGI; the exporter would take it for TLS.
    target = f"http://{endpoint}" if endpoint and "://" not in endpoint else endpoint
    return TraceSettings(exporter, target, "" if named else service_name)


def _exporter(endpoint: str, environ: Mapping[str, str]) -> str | None:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if endpoint:
        return "otlp"
    asked = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if asked == "none":
        return None
    if asked and asked not in EXPORTERS:
        raise ConfigError(f"OTEL_TRACES_EXPORTER={asked}: use otlp, console or none")
    if asked:
        return asked
    named = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return "otlp" if named else None
