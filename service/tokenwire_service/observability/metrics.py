"""The Prometheus metrics, all named `tokenwire_*`, on a registry of their own.

What calls do is counted as they do it; what the engine knows (batch, queue, KV cache, its counters) is read from its
latest snapshot when a page is scraped. Engine counters begin again with a restarted engine, as Prometheus counters may.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tokenwire_service.core.events import EngineStats
from tokenwire_service.engine.client import EngineState

# Boundaries of OpenTelemetry's GenAI conventions; the inter-token ones are extended downwards for accelerators.
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
INTER_TOKEN_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)

EngineSnapshot = tuple[EngineStats, EngineState]


class RequestMetrics:
    """What calls do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, help: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(name, help, labels, buckets=buckets, registry=registry)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(name, help, labels, registry=registry)

        self.in_flight = Gauge(
            "tokenwire_requests_in_flight", "Calls that arrived and have not ended.", registry=registry
        )
        self.requests = counter("tokenwire_requests", "Calls that ended, by method and status code.", "method", "code")
        self.errors = counter(
            "tokenwire_request_errors", "Calls that ended badly, by method and reason.", "method", "reason"
        )
        self.finishes = counter("tokenwire_candidates_finished", "Candidates that ended well, by reason.", "reason")
        self.duration = histogram(
            "tokenwire_request_duration_seconds", "Arrival to end of a call.", DURATION_S, ("method",)
        )
        self.first_token = histogram(
            "tokenwire_time_to_first_token_seconds", "Arrival to the first generated token.", FIRST_TOKEN_S
        )
        self.inter_token = TokenHistogram(
            "tokenwire_inter_token_latency_seconds", "Time between tokens of one candidate.", INTER_TOKEN_S
        )
        registry.register(self.inter_token)
        self.queue_time = histogram("tokenwire_queue_time_seconds", "Arrival to a place in the batch.", FIRST_TOKEN_S)
        self.prefill_time = histogram(
            "tokenwire_prefill_time_seconds", "Place in the batch to the first generated token.", FIRST_TOKEN_S
        )
        self.prompt_tokens = histogram("tokenwire_request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.generated_tokens = histogram(
            "tokenwire_request_generated_tokens", "Tokens generated for a call that ended well.", TOKENS
        )


class TokenHistogram(Collector):
    """A histogram for what happens with every token: a count in a list, where the library's takes two locks.

    One thread observes; scrapes, from any thread, read.
    """

    def __init__(self, name: str, help: str, buckets: tuple[float, ...]) -> None:
        """`buckets`: upper bounds, ascending; one without bound follows."""
        self._name, self._help = name, help
        self._bounds = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float, num: int = 1) -> None:
        """`value` was seen `num` times."""
        self._counts[bisect_left(self._bounds, value)] += num
        self._sum += value * num

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._name, self._help)

    def collect(self) -> Iterator[Metric]:
        totals = accumulate(self._counts)
        labels = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        rows = list(zip(labels, totals, strict=True))
        yield HistogramMetricFamily(self._name, self._help, buckets=rows, sum_value=self._sum)


class EngineCollector(Collector):
    """Reads the engine's latest snapshot at each scrape."""

    def __init__(self, snapshot: Callable[[], EngineSnapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        stats, state = self._snapshot()
        yield from _gauges(stats, state)
        yield from _counters(stats)


class ReplicaCollector(Collector):
    """Reads each engine's latest snapshot at each scrape; the metrics without `replica` are about all together."""

    def __init__(self, snapshots: Callable[[], Sequence[EngineSnapshot]]) -> None:
        self._snapshots = snapshots

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        ready = _by_replica("ready", "1 while this engine answers, 0 while it loads or is down.")
        running = _by_replica("sequences_running", "Sequences in this engine's batch.")
        waiting = _by_replica("sequences_waiting", "Sequences waiting for a place in this engine's batch.")
        usage = _by_replica("kv_usage_ratio", "Share of this engine's KV blocks held by sequences.")
        for index, (stats, state) in enumerate(self._snapshots()):
            labels, used = [str(index)], stats.num_blocks - stats.num_free_blocks
            ready.add_metric(labels, float(state is EngineState.READY))
            running.add_metric(labels, stats.num_running)
            waiting.add_metric(labels, stats.num_waiting)
            usage.add_metric(labels, used / max(stats.num_blocks, 1))
        yield from (ready, running, waiting, usage)


def _by_replica(name: str, help: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tokenwire_replica_{name}", help, labels=["replica"])


def _gauges(stats: EngineStats, state: EngineState) -> Iterator[Metric]:
    used = stats.num_blocks - stats.num_free_blocks
    values = (
        (
            "tokenwire_engine_ready",
            "1 while the engine answers, 0 while it loads or is down.",
            state is EngineState.READY,
        ),
        ("tokenwire_sequences_running", "Sequences in the batch.", stats.num_running),
        ("tokenwire_sequences_waiting", "Sequences waiting for a place in the batch.", stats.num_waiting),
        ("tokenwire_waiting_tokens", "Uncached prompt tokens of waiting sequences.", stats.waiting_tokens),
        ("tokenwire_kv_blocks", "KV blocks in all.", stats.num_blocks),
        ("tokenwire_kv_blocks_free", "KV blocks no sequence holds, cached ones included.", stats.num_free_blocks),
        ("tokenwire_kv_blocks_cached", "Free KV blocks that hold a cached prefix.", stats.num_cached_blocks),
        ("tokenwire_kv_block_size_tokens", "Tokens in one KV block.", stats.block_size),
        ("tokenwire_kv_usage_ratio", "Share of KV blocks held by sequences.", used / max(stats.num_blocks, 1)),
        ("tokenwire_step_time_seconds", "Duration of the engine's last step.", stats.step_time_s),
    )
    for name, text, value in values:
        yield GaugeMetricFamily(name, text, value=float(value))


def _counters(stats: EngineStats) -> Iterator[Metric]:
    values = (
        ("tokenwire_engine_steps", "Engine steps.", stats.num_steps),
        ("tokenwire_prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens),
        ("tokenwire_generated_tokens", "Tokens generated.", stats.generated_tokens),
        ("tokenwire_prefix_query_tokens", "Prompt tokens looked up in the prefix cache.", stats.prefix_query_tokens),
        ("tokenwire_prefix_hit_tokens", "Prompt tokens found in the prefix cache.", stats.prefix_hit_tokens),
        ("tokenwire_preemptions", "Sequences that gave up their place and were recomputed.", stats.preemptions),
        ("tokenwire_draft_tokens", "Tokens guessed by speculation.", stats.draft_tokens),
        ("tokenwire_accepted_draft_tokens", "Guesses that became tokens of an output.", stats.accepted_draft_tokens),
    )
    for name, text, value in values:
        yield CounterMetricFamily(name, text, value=float(value))


class Metrics:
    """All metrics and the registry they are served from."""

    def __init__(self, snapshot: Callable[[], EngineSnapshot]) -> None:
        self.registry = CollectorRegistry()
        self.requests = RequestMetrics(self.registry)
        self.engine_restarts = Counter(
            "tokenwire_engine_restarts",
            "Times the engine came back after it died or hung; of replicas, after none was left.",
            registry=self.registry,
        )
        self.registry.register(EngineCollector(snapshot))
        ProcessCollector(registry=self.registry)
