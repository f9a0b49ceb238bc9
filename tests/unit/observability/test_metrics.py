"""Metrics as a Prometheus server sees them: scraped over HTTP from the real page."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tokenwire_service.core.events import EngineStats
from tokenwire_service.engine.client import EngineState
from tokenwire_service.errors import StartupError
from tokenwire_service.observability.metrics import TokenHistogram
from tokenwire_service.observability.metrics_server import MetricsServer
from tokenwire_service.observability.recorder import Recorder
from tokenwire_service.observability.telemetry import NullTelemetry, RequestTelemetry, Telemetry

CHAT = "tokenwire.v1.TextGenerationService/ChatStream"
STATS = EngineStats(
    num_running=3,
    num_waiting=2,
    waiting_tokens=700,
    num_blocks=100,
    num_free_blocks=75,
    num_cached_blocks=10,
    block_size=32,
    num_steps=41,
    prefix_query_tokens=900,
    prefix_hit_tokens=300,
    prompt_tokens=1200,
    generated_tokens=80,
    preemptions=4,
    step_time_s=0.025,
    draft_tokens=40,
    accepted_draft_tokens=30,
)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Page:
    """One scrape: values by name and labels."""

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            text = answer.read().decode()
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self._values[(name, frozenset(labels.items()))]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(clock: Clock) -> Recorder:
    return Recorder(clock=clock)


@pytest.fixture
def server(recorder: Recorder) -> Iterator[MetricsServer]:
    server = MetricsServer(recorder.metrics.registry, "127.0.0.1", 0)
    yield server
    server.close()


def answered(recorder: Recorder, clock: Clock) -> RequestTelemetry:
    """A call: 0.5 s queued, first token at 1 s, then 4 tokens in 0.16 s, done at 1.5 s."""
    call = recorder.request(CHAT, "m", "r1", {})
    clock.now += 0.5
    call.admitted(0.5, 100, 64)
    clock.now += 0.5
    call.tokens(1)
    clock.now += 0.16
    call.tokens(4)
    clock.now += 0.34
    call.completed(["stop"], 100, 64, 5, 0.5, 1.5, 0)
    return call


def test_a_call_that_ends_well_is_measured(recorder: Recorder, server: MetricsServer, clock: Clock) -> None:
    call = answered(recorder, clock)
    assert Page(server.port).value("tokenwire_requests_in_flight") == 1
    call.ended("OK")
    page = Page(server.port)
    assert page.value("tokenwire_requests_in_flight") == 0
    assert page.value("tokenwire_requests_total", method="ChatStream", code="OK") == 1
    assert page.value("tokenwire_candidates_finished_total", reason="stop") == 1
    assert page.value("tokenwire_request_duration_seconds_sum", method="ChatStream") == pytest.approx(1.5)
    assert page.value("tokenwire_time_to_first_token_seconds_sum") == pytest.approx(1.0)
    assert page.value("tokenwire_inter_token_latency_seconds_count") == 4
    assert page.value("tokenwire_inter_token_latency_seconds_sum") == pytest.approx(0.16)
    assert page.value("tokenwire_inter_token_latency_seconds_bucket", le="0.05") == 4
    assert page.value("tokenwire_inter_token_latency_seconds_bucket", le="0.025") == 0
    assert page.value("tokenwire_queue_time_seconds_sum") == pytest.approx(0.5)
    assert page.value("tokenwire_prefill_time_seconds_sum") == pytest.approx(0.5)
    assert page.value("tokenwire_request_prompt_tokens_sum") == 100
    assert page.value("tokenwire_request_generated_tokens_sum") == 5
    assert not list(page.families["tokenwire_request_errors"].samples)


def test_candidates_side_by_side_do_not_look_faster(recorder: Recorder, server: MetricsServer, clock: Clock) -> None:
    call = recorder.request(CHAT, "m", "r1", {})
    call.tokens(3, num_candidates=3)
    clock.now += 0.04
    call.tokens(3, num_candidates=3)
    call.ended("OK")
    page = Page(server.port)
    assert page.value("tokenwire_inter_token_latency_seconds_count") == 3
    assert page.value("tokenwire_inter_token_latency_seconds_sum") == pytest.approx(0.12)


def test_errors_are_counted_by_reason_and_once(recorder: Recorder, server: MetricsServer) -> None:
    call = recorder.request(CHAT, "m", "r1", {})
    call.ended("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    call.ended("INTERNAL", "ENGINE_FAILURE")
    recorder.request(CHAT, "m", "r2", {}).ended("CANCELLED")
    page = Page(server.port)
    assert page.value("tokenwire_request_errors_total", method="ChatStream", reason="QUEUE_FULL") == 1
    assert page.value("tokenwire_request_errors_total", method="ChatStream", reason="CANCELLED") == 1
    assert page.value("tokenwire_requests_total", method="ChatStream", code="RESOURCE_EXHAUSTED") == 1
    assert len([s for s in page.families["tokenwire_requests"].samples if s.name.endswith("_total")]) == 2
    assert page.value("tokenwire_requests_in_flight") == 0


def test_the_engine_is_asked_at_scrape_time(recorder: Recorder, server: MetricsServer) -> None:
    recorder.attach_engine(lambda: (STATS, EngineState.READY))
    page = Page(server.port)
    expected = {
        "tokenwire_engine_ready": 1,
        "tokenwire_sequences_running": 3,
        "tokenwire_sequences_waiting": 2,
        "tokenwire_waiting_tokens": 700,
        "tokenwire_kv_blocks": 100,
        "tokenwire_kv_blocks_free": 75,
        "tokenwire_kv_blocks_cached": 10,
        "tokenwire_kv_block_size_tokens": 32,
        "tokenwire_kv_usage_ratio": 0.25,
        "tokenwire_step_time_seconds": 0.025,
        "tokenwire_engine_steps_total": 41,
        "tokenwire_prompt_tokens_total": 1200,
        "tokenwire_generated_tokens_total": 80,
        "tokenwire_prefix_query_tokens_total": 900,
        "tokenwire_prefix_hit_tokens_total": 300,
        "tokenwire_preemptions_total": 4,
        "tokenwire_draft_tokens_total": 40,
        "tokenwire_accepted_draft_tokens_total": 30,
        "tokenwire_engine_restarts_total": 0,
    }
    assert {name: page.value(name) for name in expected} == expected


def test_restarts_count_returns_from_down(recorder: Recorder, server: MetricsServer) -> None:
    for state in (EngineState.LOADING, EngineState.READY, EngineState.DOWN, EngineState.DOWN, EngineState.LOADING):
        recorder.observe_engine(EngineStats(), state)
    assert Page(server.port).value("tokenwire_engine_restarts_total") == 0
    assert Page(server.port).value("tokenwire_engine_ready") == 0
    recorder.observe_engine(STATS, EngineState.READY)
    page = Page(server.port)
    assert page.value("tokenwire_engine_restarts_total") == 1
    assert page.value("tokenwire_sequences_running") == 3


def test_every_metric_has_the_prefix_and_help(recorder: Recorder, server: MetricsServer) -> None:
    for name, family in Page(server.port).families.items():
        assert name.startswith(("tokenwire_", "process_"))
        assert family.documentation


def test_two_recorders_share_nothing(clock: Clock) -> None:
    first, second = Recorder(clock=clock), Recorder(clock=clock)
    first.request(CHAT, "m", "r", {}).ended("OK")
    labels = {"method": "ChatStream", "code": "OK"}
    assert first.metrics.registry.get_sample_value("tokenwire_requests_total", labels) == 1
    assert second.metrics.registry.get_sample_value("tokenwire_requests_total", labels) is None


def test_a_taken_port_is_one_clear_error(recorder: Recorder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"127\.0\.0\.1:{port} .*--prometheus-port"):
            MetricsServer(recorder.metrics.registry, "127.0.0.1", port)


def test_an_unknown_host_is_one_clear_error(recorder: Recorder) -> None:
    with pytest.raises(StartupError, match="--prometheus-hostname"):
        MetricsServer(recorder.metrics.registry, "256.1.1.1", 0)


def test_close_frees_the_port(recorder: Recorder) -> None:
    server = MetricsServer(recorder.metrics.registry, "127.0.0.1", 0)
    server.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=2)


def test_the_null_telemetry_takes_everything() -> None:
    telemetry: Telemetry = NullTelemetry()
    telemetry.observe_engine(STATS, EngineState.READY)
    call = telemetry.request(CHAT, "m", "r", {})
    call.attributes(max_tokens=1)
    call.admitted(0.0, 1, 0)
    call.tokens(1)
    call.completed(["stop"], 1, 0, 1, 0.0, 0.0, 0)
    call.ended("OK")


def test_a_histogram_of_tokens_reads_like_the_librarys() -> None:
    bounds, values = (0.0025, 0.1, 2.5), (0.0, 0.0025, 0.0026, 0.1, 2.0, 9.0)
    registry, reference = CollectorRegistry(), CollectorRegistry()
    ours, theirs = (
        TokenHistogram("a_seconds", "Time.", bounds),
        Histogram("a_seconds", "Time.", buckets=bounds, registry=reference),
    )
    registry.register(ours)
    for value in values:
        ours.observe(value, 3)
        for _ in range(3):
            theirs.observe(value)

    def lines(page: bytes) -> list[str]:
        return [line for line in page.decode().splitlines() if "_created" not in line]

    assert lines(generate_latest(registry)) == lines(generate_latest(reference))


def test_each_replica_is_asked_at_scrape_time(recorder: Recorder, server: MetricsServer) -> None:
    recorder.attach_replicas(lambda: [(STATS, EngineState.READY), (EngineStats(), EngineState.DOWN)])
    page = Page(server.port)
    expected = {"ready": (1, 0), "sequences_running": (3, 0), "sequences_waiting": (2, 0), "kv_usage_ratio": (0.25, 0)}
    for name, values in expected.items():
        told = tuple(page.value(f"tokenwire_replica_{name}", replica=replica) for replica in "01")
        assert told == values
