"""Tiny random checkpoints of real architectures, written by transformers, and its own logits for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def random_model(model_type: str, **overrides: Any) -> PreTrainedModel:
    """An eager float32 model of `model_type`; every weight, norms and biases included, is far from its default."""
    config = AutoConfig.for_model(model_type, **{**SMALL, **overrides})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if "norm" in name else 0.0))
    return model


def save(model: PreTrainedModel, directory: Path) -> dict[str, Any]:
    """Writes the checkpoint; returns its parsed config.json."""
    model.save_pretrained(directory)
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def stored_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as they are in the directory's safetensors files."""
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """token_ids int64 [L] → transformers' logits [L, V], one sequence, no cache."""
    logits: Tensor = model(token_ids[None], use_cache=False).logits[0]
    return logits
