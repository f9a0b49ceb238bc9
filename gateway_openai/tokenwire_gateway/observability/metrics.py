"""Prometheus metrics of the gateway, the load of the service behind it, and TGI's names for what TGI counted too."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tokenwire.v1 import engine_pb2
from tokenwire_gateway.facts import RequestFacts

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
_PER_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
GENERATING_ROUTES = frozenset({"/", "/generate", "/generate_stream", "/v1/completions", "/v1/chat/completions"})
_TGI_FAILURES = MappingProxyType(
    {429: "overloaded"} | dict.fromkeys((400, 401, 403, 404, 408, 413, 415, 422), "validation")
)


class Metrics:
    """One application's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter(
            "tokenwire_gateway_requests", "REST requests answered.", labels, registry=self.registry
        )
        self._seconds = self._histogram(
            "tokenwire_gateway_request_duration_seconds", "From request to last byte.", labels
        )
        self._first = self._histogram(
            "tokenwire_gateway_time_to_first_token_seconds", "From request to the first generated token.", ("route",)
        )
        self._in_flight = Gauge(
            "tokenwire_gateway_requests_in_flight", "REST requests being answered.", registry=self.registry
        )
        self._tgi_count = 0
        self._tgi_success = 0
        self._tgi_failures: dict[str, int] = {}
        self._tgi_seconds = self._histogram("tgi_request_duration", "From request to last byte.")
        self._tgi_queue = self._histogram("tgi_request_queue_duration", "Time in the queue.")
        self._tgi_inference = self._histogram("tgi_request_inference_duration", "Time in the batch.")
        self._tgi_token = self._histogram(
            "tgi_request_mean_time_per_token_duration", "Mean time for a token.", buckets=_PER_TOKEN
        )
        self._tgi_input = self._histogram("tgi_request_input_length", "Tokens of the prompt.", buckets=_TOKENS)
        self._tgi_generated = self._histogram("tgi_request_generated_tokens", "Tokens generated.", buckets=_TOKENS)

    def began(self) -> None:
        """Count a request as in flight."""
        self._in_flight.inc()

    def ended(self, method: str, route: str, facts: RequestFacts, seconds: float) -> None:
        """Record an answered request."""
        self._in_flight.dec()
        labels = (method, route, str(facts.status))
        self._requests.labels(*labels).inc()
        self._seconds.labels(*labels).observe(seconds)
        if facts.first_token_s is not None:
            self._first.labels(route).observe(facts.first_token_s)
        if method == "POST" and route in GENERATING_ROUTES:
            self._ended_generation(facts, seconds)

    def page(self, load: engine_pb2.Load | None) -> bytes:
        """The metrics page in Prometheus' text format; `load` is the service's, None when it does not answer."""
        lines = "".join(f"{line}\n" for line in (*_load_lines(load), *self._tgi_lines()))
        return generate_latest(self.registry) + lines.encode()

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _ended_generation(self, facts: RequestFacts, seconds: float) -> None:
        self._tgi_count += 1
        if facts.status != 200 or facts.failure:
            kind = _TGI_FAILURES.get(facts.status, "generation")
            self._tgi_failures[kind] = self._tgi_failures.get(kind, 0) + 1
            return
        self._tgi_success += 1
        self._tgi_seconds.observe(seconds)
        if facts.usage is None or facts.timing is None:
            return
        queue = facts.timing.queue_time.ToNanoseconds() / 1e9
        inference = max(0.0, facts.timing.total_time.ToNanoseconds() / 1e9 - queue)
        self._tgi_queue.observe(queue)
        self._tgi_inference.observe(inference)
        self._tgi_input.observe(facts.usage.prompt_tokens)
        self._tgi_generated.observe(facts.usage.completion_tokens)
        self._tgi_token.observe(inference / max(1, facts.usage.completion_tokens))

    def _tgi_lines(self) -> Iterator[str]:
        # TGI's counters have no _total, which prometheus_client would add.
        yield "# TYPE tgi_request_count counter"
        yield f"tgi_request_count {self._tgi_count}"
        yield "# TYPE tgi_request_success counter"
        yield f"tgi_request_success {self._tgi_success}"
        yield "# TYPE tgi_request_failure counter"
        for kind, count in sorted(self._tgi_failures.items()):
            yield f'tgi_request_failure{{err="{kind}"}} {count}'


def _load_lines(load: engine_pb2.Load | None) -> Iterator[str]:
    yield from _gauge("tokenwire_backend_up", "Whether the generation service answers.", int(load is not None))
    if load is None:
        return
    yield from _gauge("tokenwire_backend_running", "Sequences in the batch.", load.running)
    yield from _gauge("tokenwire_backend_waiting", "Sequences waiting for a place.", load.waiting)
    yield from _gauge("tokenwire_backend_waiting_tokens", "Prompt tokens waiting.", load.waiting_tokens)
    yield from _gauge("tokenwire_backend_requests_in_flight", "Requests at the service.", load.requests_in_flight)
    yield from _gauge("tokenwire_backend_kv_blocks", "KV blocks in all.", load.kv_blocks_total)
    yield from _gauge("tokenwire_backend_kv_blocks_free", "KV blocks no running sequence holds.", load.kv_blocks_free)
    yield from _gauge("tokenwire_backend_utilization", "The largest of KV, batch and queue use.", load.utilization)
    yield from _gauge("tgi_queue_size", "Sequences waiting for a place.", load.waiting)
    yield from _gauge("tgi_batch_current_size", "Sequences in the batch.", load.running)


def _gauge(name: str, text: str, value: float) -> tuple[str, str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {value}"
