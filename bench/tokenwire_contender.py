"""Our engine as the frontend uses it: its own process, behind EngineClient."""

from __future__ import annotations

import asyncio
import os
import time

from tokenwire_service.config import OPENMP_SPIN, EngineConfig, ModelConfig
from tokenwire_service.core.events import Completed, Failed
from tokenwire_service.core.params import Request, SamplingParams, StoppingParams
from tokenwire_service.engine.process_client import ProcessEngineClient
from tokenwire_service.weights.resolve import ResolvedModel


class TokenwireContender:
    """Greedy generation through a ProcessEngineClient on a loop of its own."""

    def __init__(self, model: ModelConfig, resolved: ResolvedModel) -> None:
        self._runner = asyncio.Runner()
        self._num_requests = 0
        self._client = self._runner.run(self._start(model, resolved))

    async def _start(self, model: ModelConfig, resolved: ResolvedModel) -> ProcessEngineClient:
        os.environ.setdefault(*OPENMP_SPIN)
        client = ProcessEngineClient(resolved, model.dtype, EngineConfig())
        await client.start()
        return client

    def generate(self, prompts: list[list[int]], new_tokens: int) -> int:
        return self._runner.run(self._generate(prompts, new_tokens))

    async def _generate(self, prompts: list[list[int]], new_tokens: int) -> int:
        return sum(await asyncio.gather(*(self._one(prompt, new_tokens) for prompt in prompts)))

    async def _one(self, prompt: list[int], new_tokens: int) -> int:
        self._num_requests += 1
        stream = self._client.submit(
            Request(
                request_id=str(self._num_requests),
                prompt_token_ids=tuple(prompt),
                sampling=SamplingParams(temperature=0.0),
                stopping=StoppingParams(max_tokens=new_tokens),
                arrival_time=time.monotonic(),
            )
        )
        while True:
            for event in await stream.take():
                if isinstance(event, Failed):
                    raise RuntimeError(event.message)
                if isinstance(event, Completed):
                    return event.completion_tokens

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()
