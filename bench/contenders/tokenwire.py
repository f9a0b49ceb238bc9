"""Our engine as the frontend uses it: in its own process, behind EngineClient."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from typing import Any

from bench.contenders.worker import Output, Setup, Stopwatch, serve
from tokenwire_service.config import OPENMP_SPIN, EngineConfig, ModelConfig
from tokenwire_service.core.events import Completed, Failed, TokensGenerated
from tokenwire_service.core.params import Request, SamplingParams, StoppingParams
from tokenwire_service.engine.process_client import ProcessEngineClient
from tokenwire_service.weights.resolve import resolve_model


class Tokenwire:
    """Options: any fields of ModelConfig and EngineConfig."""

    def __init__(self, setup: Setup) -> None:
        self._runner = asyncio.Runner()
        self._num_requests = 0
        of_engine = {field.name for field in dataclasses.fields(EngineConfig)} & setup.options.keys()
        engine = {name: setup.options[name] for name in of_engine}
        model = {name: value for name, value in setup.options.items() if name not in of_engine}
        self._model = ModelConfig(model_id=setup.model, **model)
        self._engine = EngineConfig(
            num_threads=setup.threads,
            max_batch_size=setup.max_sequences,
            max_batch_total_tokens=setup.max_tokens,
            prefix_caching=False,
            speculate=0,
            device="cpu",
            **engine,
        )
        self._client = self._runner.run(self._start())
        self.settings: dict[str, Any] = setup.options | dataclasses.asdict(self._client.info)

    async def _start(self) -> ProcessEngineClient:
        os.environ.setdefault(*OPENMP_SPIN)
        client = ProcessEngineClient(resolve_model(self._model), self._model.dtype, self._engine)
        await client.start()
        return client

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Nothing depends on the prompts."""

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[Output]:
        return self._runner.run(self._generate(prompts, new_tokens))

    async def _generate(self, prompts: list[list[int]], new_tokens: int) -> list[Output]:
        watch = Stopwatch(len(prompts))
        await asyncio.gather(*(self._one(index, prompt, new_tokens, watch) for index, prompt in enumerate(prompts)))
        return watch.outputs()

    async def _one(self, index: int, prompt: list[int], new_tokens: int, watch: Stopwatch) -> None:
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
                if isinstance(event, TokensGenerated):
                    watch.add(index, list(event.token_ids))
                elif isinstance(event, Failed):
                    raise RuntimeError(event.message)
                elif isinstance(event, Completed):
                    return

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


if __name__ == "__main__":
    serve(Tokenwire, "tokenwire-service", "torch")
