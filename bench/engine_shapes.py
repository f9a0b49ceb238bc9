"""Models that are a shape and random numbers: they compute as fast as trained ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tokenwire_service.models.checkpoint import checkpoint_tensors
from tokenwire_service.models.families import read_spec
from tokenwire_service.weights.resolved import GenerationDefaults, ModelKind, ResolvedModel

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
}
SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama-3.1-8b": _LLAMA
        | {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
        },
        # What one rank of eight holds of the 70B model: an eighth of the heads, the gates and the vocabulary.
        "llama-3.1-70b-of-8": _LLAMA
        | {
            "vocab_size": 128256 // 8,
            "hidden_size": 8192,
            "intermediate_size": 28672 // 8,
            "num_hidden_layers": 80,
            "num_attention_heads": 64 // 8,
            "num_key_value_heads": 8 // 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
        },
        "smollm2-135m": _LLAMA
        | {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rope_theta": 100000.0,
            "tie_word_embeddings": True,
        },
        "tiny": _LLAMA
        | {
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 16384,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
    }
)
"""config.json by name."""


def without_work(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same layers at the smallest sizes: what a step of it takes is what a step takes besides computing."""
    least = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 32,
    }
    return dict(config) | least


def random_model(name: str, config: Mapping[str, Any]) -> ResolvedModel:
    """A model without files; its tensors are random_tensors'."""
    return ResolvedModel(
        model_id=name,
        revision="",
        kind=ModelKind.LOCAL,
        config=config,
        weight_files=(Path("random.safetensors"),),
        tokenizer_dir=Path(),
        generation=GenerationDefaults(),
    )


def random_tensors(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, made where it is used: ones, and matrices that keep the size of what they map."""
    generator = torch.Generator(device).manual_seed(0)
    for name, shape in checkpoint_tensors(read_spec(config)):
        if len(shape) == 1:
            yield name, torch.ones(shape, device=device, dtype=dtype)
        else:
            values = torch.randn(shape, generator=generator, device=device, dtype=dtype)
            yield name, values.mul_(shape[1] ** -0.5)
