"""Our engine's own loop without processes or sockets: scheduler, runner, events, and a clock on every step."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from bench.engine_shapes import random_model, random_tensors
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.events import EngineEvent, EngineStats, Failed, TokensGenerated
from tokenwire_service.core.params import Request, SamplingParams, StoppingParams
from tokenwire_service.engine.engine import Commands, Engine
from tokenwire_service.parallel.plan_channel import PlanSender
from tokenwire_service.runner.dtypes import choose_dtype
from tokenwire_service.runner.executor import LocalExecutor, ShardedExecutor
from tokenwire_service.runner.machine import choose_device
from tokenwire_service.runner.threaded_executor import ThreadedExecutor
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.scheduler import Scheduler
from tokenwire_service.weights.progress import SilentProgress
from tokenwire_service.weights.resolved import ResolvedModel


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One turn of the engine's loop. Times in seconds."""

    took_s: float
    """From the end of the turn before."""
    num_tokens: int
    """Tokens that it brought."""
    device_s: float
    gap_s: float
    """What the device waited before it."""
    host_s: float
    """The runner's own work on the host."""


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What became of requests handed over together."""

    seconds: float
    num_tokens: int
    first_token_s: tuple[float, ...]
    steps: tuple[StepRecord, ...]

    def steady(self, batch: int) -> list[StepRecord]:
        """Turns in which every sequence got a token, but for the first and the last few."""
        full = [step for step in self.steps if step.num_tokens == batch]
        return full[2:-2] if len(full) > 8 else full


class OfflineEngine:
    """Loads on construction; runs batches greedily to their full length."""

    def __init__(
        self, resolved: ResolvedModel, dtype: str, config: EngineConfig, *, sharded_path: bool = False
    ) -> None:
        """`sharded_path`: drive the one rank as rank 0 of many is driven."""
        self._worker = Worker(resolved, dtype, config, SilentProgress())
        self.device, self.sizes, self.facts = self._worker.device, self._worker.sizes, self._worker.facts
        limits = self.sizes.scheduler_limits(prefix_caching=config.prefix_caching)
        self._inbox = _Inbox()
        self._events: list[EngineEvent] = []
        self._engine = Engine(
            Scheduler(limits, model_name=resolved.model_id),
            _sharded(self._worker) if sharded_path else LocalExecutor(self._worker),
            self._inbox,
            self._publish,
            logger=logging.getLogger("bench.engine"),
        )
        self._num_requests = 0

    @classmethod
    def random(
        cls, name: str, config: Mapping[str, Any], dtype: str, engine: EngineConfig, *, sharded_path: bool = False
    ) -> OfflineEngine:
        """The model of this config.json with random weights, made on the device it runs on."""
        device = choose_device(engine.device, 0)
        made = torch.float32 if device.type == "cpu" else choose_dtype(dtype, device)
        tensors = random_tensors(config, device, made)
        stream = mock.patch("tokenwire_service.runner.worker.stream_tensors", return_value=tensors)
        with stream:
            return cls(random_model(name, config), dtype, engine, sharded_path=sharded_path)

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> BatchRun:
        """All prompts at once, `new_tokens` each. Raises RuntimeError when one fails."""
        missing = {self._submit(prompt, new_tokens): new_tokens for prompt in prompts}
        first: dict[str, float] = {}
        steps: list[StepRecord] = []
        begun = before = time.perf_counter()
        while any(missing.values()):
            self._engine.step()
            now = time.perf_counter()
            brought = self._take(missing, first, now - begun)
            steps.append(self._record(now - before, brought))
            before = now
        seconds = time.perf_counter() - begun
        self._drain()
        return BatchRun(seconds, len(prompts) * new_tokens, tuple(first.values()), tuple(steps))

    def _submit(self, prompt: Sequence[int], new_tokens: int) -> str:
        self._num_requests += 1
        request = Request(
            request_id=str(self._num_requests),
            prompt_token_ids=tuple(prompt),
            sampling=SamplingParams(temperature=0.0),
            stopping=StoppingParams(max_tokens=new_tokens),
            arrival_time=time.monotonic(),
        )
        self._inbox.waiting.append(Commands(submissions=(request,)))
        return request.request_id

    def _take(self, missing: dict[str, int], first: dict[str, float], at_s: float) -> int:
        brought = 0
        events, self._events = self._events, []
        for event in events:
            if isinstance(event, Failed):
                raise RuntimeError(event.message)
            if isinstance(event, TokensGenerated):
                first.setdefault(event.request_id, at_s)
                missing[event.request_id] -= len(event.token_ids)
                brought += len(event.token_ids)
        return brought

    def _record(self, took_s: float, brought: int) -> StepRecord:
        timing = self._worker.last_timing
        if timing is None:
            return StepRecord(took_s, brought, 0.0, 0.0, 0.0)
        return StepRecord(took_s, brought, timing.device_s, timing.gap_s, timing.host_s)

    def _drain(self) -> None:
        """One more turn: sequences that ended leave their slots."""
        self._engine.step()
        self._events.clear()

    def _publish(self, events: Sequence[EngineEvent], _: EngineStats) -> None:
        self._events += events


def _sharded(worker: Worker) -> ShardedExecutor:
    """Every plan is encoded; there is nobody to send it to."""

    def fail(reason: str) -> None:
        raise RuntimeError(reason)

    local = LocalExecutor(worker)
    return ShardedExecutor(local if local.runs_ahead else ThreadedExecutor(worker), PlanSender(()), fail)


class _Inbox:
    def __init__(self) -> None:
        self.waiting: list[Commands] = []

    def drain(self, timeout_s: float) -> Sequence[Commands]:
        waiting, self.waiting = self.waiting, []
        return waiting


def median(values: Sequence[float]) -> float:
    """0 of nothing."""
    return statistics.median(values) if values else 0.0
