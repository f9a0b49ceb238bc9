"""transformers, fp32, SDPA attention: static batches by `generate`, or its continuous batching."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from bench.contenders.worker import Output, Setup, Stopwatch, serve

_PAGE_TOKENS = 32


class _Clock(StoppingCriteria):
    """Never stops anything: notes the time of every step."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(self._watch.elapsed())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Generate:
    """`model.generate` on one static batch of equally long prompts."""

    def __init__(self, setup: Setup) -> None:
        self._model = _load(setup)
        self.settings: dict[str, Any] = {"dtype": "float32", "attention": "sdpa"}

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Nothing depends on the prompts."""

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[Output]:
        watch = Stopwatch(len(prompts))
        clock = _Clock(watch)
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
        return [Output(row[ids.shape[1] :].tolist(), clock.times[0], clock.times[-1]) for row in out]

    def close(self) -> None:
        del self._model


class ContinuousBatching:
    """`model.generate_batch`, with its paged cache and its own scheduler."""

    def __init__(self, setup: Setup) -> None:
        self._model = _load(setup)
        cache: dict[str, Any] = {
            "num_blocks": -(-setup.max_tokens // _PAGE_TOKENS),
            "page_size": _PAGE_TOKENS,
            "max_batch_tokens": 512,
            "allow_block_sharing": False,
        }
        self._config = ContinuousBatchingConfig(**cache)
        self.settings = {"dtype": "float32", "attention": "sdpa", **cache}

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Nothing depends on the prompts."""

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[Output]:
        generation = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
        )
        with torch.inference_mode():
            results = self._model.generate_batch(
                inputs=prompts,
                generation_config=generation,
                continuous_batching_config=self._config,
                record_timestamps=True,
                progress_bar=False,
                warmup=False,
            )
        begun = min(result.created_time for result in results.values())
        return [
            Output(list(result.generated_tokens), result.timestamps[0] - begun, result.timestamps[-1] - begun)
            for result in results.values()
        ]

    def close(self) -> None:
        del self._model


def _load(setup: Setup) -> Any:
    torch.set_num_threads(setup.threads)
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval()  # type: ignore[no-untyped-call]


def _open(setup: Setup) -> Generate | ContinuousBatching:
    """By option "mode": "generate" or "continuous batching"."""
    return Generate(setup) if setup.options["mode"] == "generate" else ContinuousBatching(setup)


if __name__ == "__main__":
    serve(_open, "transformers", "torch")
