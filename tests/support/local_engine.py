"""The real engine over a tiny random model, stepped by the test in its own process."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.checkpoints import random_model, save
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.events import (
    Completed,
    EngineEvent,
    EngineStats,
    Failed,
    PromptScored,
    TokenLogprob,
    TokensGenerated,
)
from tokenwire_service.core.params import Request, SamplingParams, StoppingParams
from tokenwire_service.engine.engine import Commands, Engine
from tokenwire_service.runner.executor import Executor, LocalExecutor, PendingStep
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import LayerSpan, SchedulerOutput
from tokenwire_service.scheduling.scheduler import Scheduler
from tokenwire_service.weights.progress import SilentProgress
from tokenwire_service.weights.resolved import GenerationDefaults, ModelKind, ResolvedModel

VOCAB_SIZE = 97
TINY_LIMITS = EngineConfig(
    max_batch_size=16, max_batch_prefill_tokens=48, max_batch_total_tokens=2048, block_size=16, num_threads=1
)


def write_tiny_model(directory: Path) -> ResolvedModel:
    """A two-layer Llama with a context of 256 tokens."""
    config = save(random_model("llama", max_position_embeddings=256), directory)
    return resolved_from(directory, config)


def resolved_from(directory: Path, config: dict[str, Any]) -> ResolvedModel:
    """What resolving the directory gives the engine."""
    return ResolvedModel(
        model_id=str(directory),
        revision="",
        kind=ModelKind.LOCAL,
        config=config,
        weight_files=tuple(sorted(directory.glob("*.safetensors"))),
        tokenizer_dir=directory,
        generation=GenerationDefaults(),
    )


def make_request(
    request_id: str,
    prompt: Sequence[int],
    max_tokens: int = 8,
    *,
    sampling: SamplingParams | None = None,
    stopping: StoppingParams | None = None,
    **fields: Any,
) -> Request:
    """A greedy request that arrives now."""
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=sampling or SamplingParams(temperature=0.0),
        stopping=stopping or StoppingParams(max_tokens=max_tokens),
        arrival_time=time.monotonic(),
        **fields,
    )


class Answer:
    """What the events of one request said."""

    def __init__(self, events: Sequence[EngineEvent]) -> None:
        self.events = list(events)
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.logprobs: dict[int, list[TokenLogprob]] = defaultdict(list)
        self.prompt_logprobs: list[TokenLogprob] = []
        for event in events:
            if isinstance(event, TokensGenerated):
                self.tokens[event.index].extend(event.token_ids)
                self.logprobs[event.index].extend(event.logprobs)
            if isinstance(event, PromptScored):
                assert event.offset == len(self.prompt_logprobs) + 1
                self.prompt_logprobs.extend(event.logprobs)

    @property
    def end(self) -> Completed | Failed | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Completed | Failed) else None


class _Watched:
    """An Executor that notes the spans of what passes."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self.runs_ahead = inner.runs_ahead
        self.spans: list[LayerSpan] = []

    def launch(self, output: SchedulerOutput) -> PendingStep:
        self.spans += [row.layers for row in output.scheduled if row.layers is not None]
        return self._inner.launch(output)

    def close(self) -> None:
        self._inner.close()


class LocalEngine:
    """An Engine whose inbox is a list and whose events gather in `events`."""

    def __init__(
        self,
        worker: Worker,
        executor: Executor | None = None,
        *,
        prefix_caching: bool = True,
        max_steps_in_flight: int | None = None,
        num_draft_tokens: int = 0,
        max_decode_slowdown: float = 0.0,
        num_layers: int = 0,
    ) -> None:
        """`num_layers` of the model where a chunk may go through a few of them a step."""
        limits = worker.sizes.scheduler_limits(prefix_caching=prefix_caching)
        self.scheduler = Scheduler(
            dataclasses.replace(
                limits,
                num_draft_tokens=num_draft_tokens,
                max_decode_slowdown=max_decode_slowdown,
                num_layers=num_layers,
            )
        )
        self.stats = EngineStats()
        self.events: dict[str, list[EngineEvent]] = defaultdict(list)
        self._messages: list[Commands] = []
        self._executor = _Watched(executor or LocalExecutor(worker))
        self.engine = Engine(
            self.scheduler,
            self._executor,
            self,
            self._publish,
            logger=logging.getLogger("test"),
            max_steps_in_flight=max_steps_in_flight,
        )

    @property
    def spans(self) -> list[LayerSpan]:
        """Of the rows that went through some layers in a step."""
        return self._executor.spans

    def drain(self, timeout_s: float) -> Sequence[Commands]:
        """See Inbox.drain; never waits."""
        messages, self._messages = self._messages, []
        return messages

    def say(self, **commands: Any) -> None:
        """Leave a message for the next step."""
        self._messages.append(Commands(**commands))

    def step(self, **commands: Any) -> None:
        """One step, after the given message."""
        if commands:
            self.say(**commands)
        self.engine.step()

    def run(self, *requests: Request) -> dict[str, Answer]:
        """Submit the requests at once, and step until nothing is left to do."""
        self.say(submissions=requests)
        self.step()
        while self.scheduler.has_work():
            self.step()
        return {request.request_id: self.answer(request.request_id) for request in requests}

    def answer(self, request_id: str) -> Answer:
        return Answer(self.events[request_id])

    def assert_idle(self) -> None:
        """Nothing runs, nothing waits, every block is free."""
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.waiting_tokens) == (0, 0, 0)
        assert stats.num_free_blocks == stats.num_blocks
        self.scheduler.check_integrity()

    def _publish(self, events: Sequence[EngineEvent], stats: EngineStats) -> None:
        self.stats = stats
        for event in events:
            told = self.events[event.request_id]
            assert not told or not isinstance(told[-1], Completed | Failed), "an event after the end"
            told.append(event)


def load_tiny_worker(resolved: ResolvedModel, config: EngineConfig = TINY_LIMITS) -> Worker:
    return Worker(resolved, "float32", config, SilentProgress())
