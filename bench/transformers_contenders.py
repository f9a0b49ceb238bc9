"""transformers on the same model and prompts: static batches by `generate`, and its continuous batching."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from tokenwire_service.weights.resolve import ResolvedModel


def load(resolved: ResolvedModel, attention: str = "sdpa") -> Any:
    """The model in fp32, read by transformers' own reader."""
    path = resolved.weight_files[0]
    if path.suffix == ".gguf":
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation=attention
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), dtype=torch.float32, attn_implementation=attention
        )
    return model.eval()


class TransformersGenerate:
    """`model.generate` on one static batch."""

    name = "transformers generate"

    def __init__(self, resolved: ResolvedModel) -> None:
        self._model = load(resolved)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> int:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return int((out.shape[1] - ids.shape[1]) * out.shape[0])

    def close(self) -> None:
        del self._model


class TransformersContinuousBatching:
    """`model.generate_batch` with its paged cache and its own scheduler."""

    name = "transformers continuous batching"

    def __init__(self, resolved: ResolvedModel) -> None:
        self._model = load(resolved)
        self._config = ContinuousBatchingConfig(
            num_blocks=640, page_size=32, max_batch_tokens=512, allow_block_sharing=False
        )

    def generate(self, prompts: list[list[int]], new_tokens: int) -> int:
        generation = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
        )
        with torch.inference_mode():
            out = self._model.generate_batch(
                inputs=prompts,
                generation_config=generation,
                continuous_batching_config=self._config,
                progress_bar=False,
                warmup=False,
            )
        return sum(len(result.generated_tokens) for result in out.values())

    def close(self) -> None:
        del self._model
