"""transformers' continuous batching on a random model of a given shape, for bench.engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig


@dataclass(frozen=True, slots=True)
class Continuation:
    """When one prompt's tokens came, in seconds from the hand-over."""

    token_times_s: tuple[float, ...]


class RandomContinuousBatching:
    """`model.generate_batch` with its paged cache, scheduler and, on a GPU, CUDA graphs as it chooses."""

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device, cached_tokens: int) -> None:
        rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
        shape = {name: value for name, value in config.items() if name not in ("architectures", "rope_theta")}
        described = AutoConfig.for_model(**shape, rope_parameters=rope)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(described, dtype=dtype, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
        self._model = model.eval()
        page = 256 if device.type == "cuda" else 32
        limits: dict[str, Any] = {"page_size": page, "allow_block_sharing": False}
        if device.type == "cpu":
            limits |= {"num_blocks": -(-cached_tokens // page) + 32, "max_batch_tokens": 512}
        self._config = ContinuousBatchingConfig(**limits)
        self._on_gpu = device.type == "cuda"

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Continuation]:
        """All prompts at once, greedily, `new_tokens` each."""
        generation = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
        )
        with torch.inference_mode():
            results = self._model.generate_batch(
                inputs=[list(prompt) for prompt in prompts],
                generation_config=generation,
                continuous_batching_config=self._config,
                record_timestamps=True,
                progress_bar=False,
                warmup=self._on_gpu,
            )
        begun = min(result.created_time for result in results.values())
        return [Continuation(tuple(at - begun for at in result.timestamps)) for result in results.values()]


def steady_rate(continuations: Sequence[Continuation]) -> float:
    """Tokens per second while every sequence was decoding; over the whole run where that never was."""
    start = max(each.token_times_s[0] for each in continuations)
    end = min(each.token_times_s[-1] for each in continuations)
    if end <= start:
        start, end = 0.0, max(each.token_times_s[-1] for each in continuations)
    tokens = sum(start < at <= end for each in continuations for at in each.token_times_s)
    return tokens / (end - start)
