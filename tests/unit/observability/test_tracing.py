"""Spans as a collector receives them over OTLP gRPC."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.otlp import Collector, attributes, running_collector
from tokenwire_service.errors import ConfigError
from tokenwire_service.observability.recorder import Recorder
from tokenwire_service.observability.trace import TraceSettings, trace_settings
from tokenwire_service.observability.tracing import OpenTelemetryTracer

CHAT = "tokenwire.v1.TextGenerationService/ChatStream"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
START_NS = 1_700_000_000_000_000_000
SERVER, INTERNAL = 2, 1


class Nanoseconds:
    def __init__(self) -> None:
        self.now = START_NS

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture
def clock_ns() -> Nanoseconds:
    return Nanoseconds()


@pytest.fixture
def recorder(collector: Collector, clock_ns: Nanoseconds) -> Iterator[Recorder]:
    settings = trace_settings(collector.endpoint, "tokenwire-test", {})
    assert settings is not None
    recorder = Recorder(OpenTelemetryTracer(settings, "1.2.3", clock_ns=clock_ns))
    yield recorder
    recorder.close()


def test_a_call_becomes_a_span_and_its_phases(collector: Collector, recorder: Recorder, clock_ns: Nanoseconds) -> None:
    traceparent = f"00-{TRACE_ID}-{PARENT_ID}-01"
    call = recorder.request(CHAT, "smol", "req-1", {"traceparent": traceparent, "authorization": "Bearer secret"})
    call.attributes(max_tokens=64, temperature=0.5, top_p=None, choice_count=2, response_id="resp-1", tenant="a")
    call.admitted(0.25, 100, 32)
    clock_ns.now = START_NS + 800_000_000
    call.tokens(1)
    call.completed(["stop", "max_tokens"], 100, 32, 20, 0.5, 2.0, 1)
    clock_ns.now = START_NS + 2_000_000_000
    call.ended("OK")
    recorder.close()

    root = collector.named(CHAT)
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.kind) == (TRACE_ID, PARENT_ID, SERVER)
    assert root.status.code == 0
    assert attributes(root) == {
        "rpc.system": "grpc",
        "rpc.service": "tokenwire.v1.TextGenerationService",
        "rpc.method": "ChatStream",
        "rpc.response.status_code": "OK",
        "inference.backend": "tokenwire",
        "model_id": "smol",
        "gen_ai.provider.name": "tokenwire",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "smol",
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.id": "resp-1",
        "gen_ai.response.time_to_first_chunk": 0.8,
        "gen_ai.response.finish_reasons": ["stop", "max_tokens"],
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.cache_read.input_tokens": 32,
        "gen_ai.usage.output_tokens": 20,
        "tokenwire.preemptions": 1,
        "tokenwire.request_id": "req-1",
        "tokenwire.tenant": "a",
    }
    phases = {"engine.queue": (0, 250), "engine.prefill": (250, 750), "engine.decode": (750, 2000)}
    for name, (start_ms, end_ms) in phases.items():
        span = collector.named(name)
        assert (span.trace_id, span.parent_span_id, span.kind) == (root.trace_id, root.span_id, INTERNAL)
        assert span.start_time_unix_nano == START_NS + start_ms * 1_000_000
        assert span.end_time_unix_nano == START_NS + end_ms * 1_000_000
    assert len(collector.spans) == 4
    (resource,) = collector.resources
    assert resource["service.name"] == "tokenwire-test"
    assert resource["service.version"] == "1.2.3"


def test_a_call_that_names_no_model_is_the_default_ones(collector: Collector, recorder: Recorder) -> None:
    recorder.request(CHAT, "", "while loading", {}).ended("UNAVAILABLE", "MODEL_LOADING")
    recorder.default_model = "smol"
    recorder.request(CHAT, "", "then", {}).ended("OK")
    recorder.close()
    assert [attributes(span).get("model_id") for span in collector.spans] == [None, "smol"]


def test_a_made_up_model_name_is_cut(collector: Collector, recorder: Recorder) -> None:
    recorder.request(CHAT, "x" * 100_000, "req-1", {}).ended("NOT_FOUND", "MODEL_NOT_FOUND")
    recorder.close()
    assert attributes(collector.named(CHAT))["model_id"] == "x" * 256


@pytest.mark.parametrize(
    ("code", "reason", "status"), [("INTERNAL", "ENGINE_FAILURE", 2), ("INVALID_ARGUMENT", "INVALID_PARAMETER", 0)]
)
def test_a_bad_end_says_why_and_only_the_servers_faults_are_errors(
    collector: Collector, recorder: Recorder, code: str, reason: str, status: int
) -> None:
    recorder.request(CHAT, "smol", "req-1", {}).ended(code, reason)
    recorder.close()
    (span,) = collector.spans
    assert span.status.code == status
    assert attributes(span)["error.type"] == reason
    assert attributes(span)["rpc.response.status_code"] == code


def test_a_call_cancelled_while_decoding_keeps_its_phases(
    collector: Collector, recorder: Recorder, clock_ns: Nanoseconds
) -> None:
    call = recorder.request(CHAT, "smol", "req-1", {})
    call.admitted(0.1, 10, 0)
    clock_ns.now += 300_000_000
    call.tokens(1)
    clock_ns.now += 200_000_000
    call.ended("CANCELLED")
    recorder.close()
    decode = collector.named("engine.decode")
    assert decode.start_time_unix_nano == START_NS + 300_000_000
    assert decode.end_time_unix_nano == START_NS + 500_000_000


def test_a_call_cancelled_in_prefill_has_no_decode(
    collector: Collector, recorder: Recorder, clock_ns: Nanoseconds
) -> None:
    call = recorder.request(CHAT, "smol", "req-1", {})
    call.admitted(0.1, 10, 0)
    clock_ns.now += 300_000_000
    call.ended("CANCELLED")
    recorder.close()
    assert {span.name for span in collector.spans} == {CHAT, "engine.queue", "engine.prefill"}


@pytest.mark.parametrize("traceparent", ["", "00-zz-1-01", "x" * 10_000])
def test_a_bad_traceparent_starts_a_new_trace(collector: Collector, recorder: Recorder, traceparent: str) -> None:
    recorder.request(CHAT, "smol", "req-1", {"traceparent": traceparent}).ended("OK")
    recorder.close()
    (span,) = collector.spans
    assert span.parent_span_id == b""
    assert len(span.trace_id) == 16


def test_an_unsampled_parent_is_respected(collector: Collector, recorder: Recorder) -> None:
    recorder.request(CHAT, "smol", "r", {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}).ended("OK")
    recorder.close()
    assert collector.spans == []


OTLP_URL = "http://collector:4317"


@pytest.mark.parametrize(
    ("endpoint", "environ", "expected"),
    [
        ("", {}, None),
        ("c:4317", {}, TraceSettings("otlp", "http://c:4317", "tokenwire")),
        ("https://c:4317", {}, TraceSettings("otlp", "https://c:4317", "tokenwire")),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": OTLP_URL}, TraceSettings("otlp", "", "tokenwire")),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": OTLP_URL}, TraceSettings("otlp", "", "tokenwire")),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": OTLP_URL, "OTEL_TRACES_EXPORTER": "none"}, None),
        ("", {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SERVICE_NAME": "mine"}, TraceSettings("otlp", "", "")),
        ("", {"OTEL_TRACES_EXPORTER": "console"}, TraceSettings("console", "", "tokenwire")),
        ("c:4317", {"OTEL_SDK_DISABLED": "true"}, None),
        ("", {"OTEL_TRACES_EXPORTER": ""}, None),
    ],
)
def test_when_tracing_is_on(endpoint: str, environ: dict[str, str], expected: TraceSettings | None) -> None:
    assert trace_settings(endpoint, "tokenwire", environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin: use otlp, console or none"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf: only grpc",
        ),
    ],
)
def test_what_is_not_built_in_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trace_settings("", "tokenwire", environ)


def test_opentelemetry_is_not_imported_while_tracing_is_off() -> None:
    code = (
        "import sys, tokenwire_service.observability.recorder as r;"
        "r.Recorder().request('a/B', 'm', 'r', {}).ended('OK');"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
