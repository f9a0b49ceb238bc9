"""How busy the server is: the engine's snapshot, what is at the door, tokens per second."""

from __future__ import annotations

import collections
import time

from tokenwire.v1 import engine_pb2 as pb
from tokenwire_service.core.events import EngineStats
from tokenwire_service.rpc.admission import Admission
from tokenwire_service.rpc.convert.responses import duration, timestamp
from tokenwire_service.rpc.serving import Serving

SAMPLE_INTERVAL_S = 1.0
WINDOW_SAMPLES = 6


class RateMeter:
    """Growth of a counter per second over the last samples; a counter that falls began anew."""

    def __init__(self) -> None:
        self._samples: collections.deque[tuple[float, int]] = collections.deque(maxlen=WINDOW_SAMPLES)

    def sample(self, now: float, count: int) -> None:
        """`count` was read at `now`, monotonic seconds."""
        if self._samples and count < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, count))

    def per_second(self) -> float:
        """0 until two samples are there."""
        if len(self._samples) < 2:
            return 0.0
        (first, low), (last, high) = self._samples[0], self._samples[-1]
        return (high - low) / (last - first) if last > first else 0.0


class LoadReporter:
    """Makes `Load` messages."""

    def __init__(self, serving: Serving, admission: Admission) -> None:
        self._serving = serving
        self._admission = admission
        self.rate = RateMeter()

    @property
    def stats(self) -> EngineStats:
        """The engine's latest snapshot; zeros before there is one."""
        engine = self._serving.engine
        return EngineStats() if engine is None else engine.stats

    def load(self) -> pb.Load:
        """The load now."""
        stats = self.stats
        return pb.Load(
            time=timestamp(time.time()),
            state=pb.ServerState.ValueType(int(self._serving.state)),
            running=stats.num_running,
            waiting=stats.num_waiting,
            waiting_tokens=stats.waiting_tokens,
            kv_blocks_total=stats.num_blocks,
            kv_blocks_free=stats.num_free_blocks,
            kv_blocks_cached=stats.num_cached_blocks,
            utilization=self._utilization(stats),
            prompt_tokens=stats.prompt_tokens,
            generated_tokens=stats.generated_tokens,
            prefix_query_tokens=stats.prefix_query_tokens,
            prefix_hit_tokens=stats.prefix_hit_tokens,
            preemptions=stats.preemptions,
            steps=stats.num_steps,
            step_time=duration(stats.step_time_s),
            requests_in_flight=self._admission.in_flight,
            generated_tokens_per_second=self.rate.per_second(),
        )

    def _utilization(self, stats: EngineStats) -> float:
        batch, model = self._serving.batch, self._serving.model
        shares = [0.0]
        if stats.num_blocks:
            shares.append(1 - stats.num_free_blocks / stats.num_blocks)
        if batch is not None:
            shares.append(stats.num_running / batch.max_batch_size)
        if model is not None:
            shares.append(stats.waiting_tokens / model.limits.queue_tokens)
        return max(shares)
