"""`Telemetry` as metrics and, when tracing is on, spans."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from tokenwire_service.core.events import EngineStats
from tokenwire_service.engine.client import EngineState
from tokenwire_service.observability.metrics import EngineSnapshot, Metrics, ReplicaCollector, RequestMetrics
from tokenwire_service.observability.telemetry import AttributeValue, RequestTelemetry
from tokenwire_service.observability.trace import NullTracer, RequestSpan, Tracer


class Recorder:
    """Counts every call and traces it. `clock` is monotonic seconds."""

    def __init__(self, tracer: Tracer | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.metrics = Metrics(self._engine_snapshot)
        self._tracer = tracer or NullTracer()
        self._clock = clock
        self._lock = threading.Lock()
        self._latest: EngineSnapshot = (EngineStats(), EngineState.LOADING)
        self._was_down = False
        self._source: Callable[[], EngineSnapshot] | None = None
        self.default_model = ""
        """The model that answers calls that name none; empty until there is one."""

    def request(self, method: str, model: str, request_id: str, metadata: Mapping[str, str]) -> RequestTelemetry:
        span = self._tracer.start(method, model or self.default_model, request_id, metadata)
        return RequestRecorder(method.rpartition("/")[2], self.metrics.requests, span, self._clock)

    def attach_engine(self, source: Callable[[], EngineSnapshot]) -> None:
        """From now on a scrape asks `source` for the engine's snapshot instead of taking the latest one observed."""
        self._source = source

    def attach_replicas(self, source: Callable[[], Sequence[EngineSnapshot]]) -> None:
        """A scrape also tells of each engine by itself. Call once."""
        self.metrics.registry.register(ReplicaCollector(source))

    def observe_engine(self, stats: EngineStats, state: EngineState) -> None:
        with self._lock:
            self._latest = (stats, state)
            if state is EngineState.DOWN:
                self._was_down = True
            elif state is EngineState.READY and self._was_down:
                self._was_down = False
                self.metrics.engine_restarts.inc()

    def close(self) -> None:
        """Send the spans that are left."""
        self._tracer.close()

    def _engine_snapshot(self) -> EngineSnapshot:
        if self._source is not None:
            self.observe_engine(*self._source())
        return self._latest


class RequestRecorder:
    """The story of one call, told by one thread."""

    def __init__(self, method: str, metrics: RequestMetrics, span: RequestSpan, clock: Callable[[], float]) -> None:
        self._method = method
        self._metrics = metrics
        self._span = span
        self._clock = clock
        self._start = clock()
        self._last_tokens: float | None = None
        self._over = False
        metrics.in_flight.inc()

    def attributes(self, **attrs: AttributeValue | None) -> None:
        self._span.attributes(attrs)

    def admitted(self, queue_time_s: float, prompt_tokens: int, cached_tokens: int) -> None:
        self._metrics.queue_time.observe(queue_time_s)
        self._metrics.prompt_tokens.observe(prompt_tokens)
        self._span.admitted(queue_time_s, prompt_tokens, cached_tokens)

    def tokens(self, num: int, *, num_candidates: int = 1) -> None:
        if num <= 0:
            return
        now, previous = self._clock(), self._last_tokens
        self._last_tokens = now
        if previous is None:
            self._metrics.first_token.observe(now - self._start)
            self._span.first_token()
            return
        self._metrics.inter_token.observe((now - previous) * num_candidates / num, num)

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
        for reason in finish_reasons:
            self._metrics.finishes.labels(reason).inc()
        self._metrics.prefill_time.observe(prefill_time_s)
        self._metrics.generated_tokens.observe(completion_tokens)
        self._span.completed(
            finish_reasons, prompt_tokens, cached_tokens, completion_tokens, prefill_time_s, total_time_s, preemptions
        )

    def ended(self, code: str, reason: str = "") -> None:
        if self._over:
            return
        self._over = True
        self._metrics.in_flight.dec()
        self._metrics.requests.labels(self._method, code).inc()
        self._metrics.duration.labels(self._method).observe(self._clock() - self._start)
        if code != "OK":
            self._metrics.errors.labels(self._method, reason or code).inc()
        self._span.ended(code, reason)
