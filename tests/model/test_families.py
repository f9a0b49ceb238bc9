"""The native decoder against transformers (eager, float32) on tiny random checkpoints of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.checkpoints import random_model, reference_logits, save, stored_tensors
from tests.support.paged import PagedModel
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import load_weights
from tokenwire_service.parallel.group import TensorParallelGroup

LENGTHS = (1, 7, 19, 40)
CHUNKS = ((1,), (7,), (5, 1, 1, 12), (16, 1, 17, 1, 1, 4))
"""Chunk sizes of the four sequences: one token, one prefill, chunk and decodes, chunks and decodes mixed."""

ROPE_V5 = {"rope_theta": 500.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("llama", {}),
    "llama-mha-tied": ("llama", {"num_key_value_heads": 6, "tie_word_embeddings": True}),
    "llama-mqa-biases": ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 20, "rms_norm_eps": 1e-2}),
    "llama-linear": ("llama", {"rope_parameters": {**ROPE_V5, "rope_type": "linear", "factor": 4.0}}),
    "llama-dynamic": ("llama", {"rope_parameters": {**ROPE_V5, "rope_type": "dynamic", "factor": 2.0}}),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                **ROPE_V5,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-yarn": (
        "llama",
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
            },
        },
    ),
    "mistral-window": ("mistral", {"sliding_window": 6}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-biases-window": (
        "qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "smollm3-window": (
        "smollm3",
        {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 8, "tie_word_embeddings": True},
    ),
}


def load(directory: Path, config: dict[str, Any], backend: Backend) -> Decoder:
    return load_weights(
        read_spec(config), stored_tensors(directory), torch.float32, TensorParallelGroup(), backend=backend
    )


def prompts(vocab_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab_size, (length,), generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(tmp_path: Path, backends: dict[str, Backend], family: str) -> None:
    model_type, overrides = FAMILIES[family]
    model = random_model(model_type, **overrides)
    config = save(model, tmp_path)
    sequences = prompts(config["vocab_size"])
    expected = [reference_logits(model, tokens) for tokens in sequences]
    assert min(float(logits.std()) for logits in expected) > 0.1, "flat logits prove nothing"
    for backend in backends.values():
        paged = PagedModel(load(tmp_path, config, backend), block_size=4)
        for ours, theirs in zip(paged.replay(sequences, CHUNKS), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_the_block_size_changes_nothing(tmp_path: Path, backends: dict[str, Backend], block_size: int) -> None:
    model = random_model("mistral", sliding_window=6)
    config = save(model, tmp_path)
    sequences = prompts(config["vocab_size"])
    for backend in backends.values():
        paged = PagedModel(load(tmp_path, config, backend), block_size=block_size, num_blocks=128, seed=block_size)
        for ours, tokens in zip(paged.replay(sequences, CHUNKS), sequences, strict=True):
            torch.testing.assert_close(ours, reference_logits(model, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_the_older_spelling_of_rope_scaling(tmp_path: Path, backends: dict[str, Backend], kind: str) -> None:
    model = random_model("llama", rope_parameters={"rope_theta": 700.0, "rope_type": kind, "factor": 3.0})
    config = save(model, tmp_path)
    del config["rope_parameters"]
    config |= {"rope_theta": 700.0, "rope_scaling": {"type": kind, "factor": 3.0}}
    tokens = prompts(config["vocab_size"])[3]
    paged = PagedModel(load(tmp_path, config, backends["reference"]), block_size=4)
    (ours,) = paged.replay([tokens], [(len(tokens),)])
    torch.testing.assert_close(ours, reference_logits(model, tokens), atol=1e-4, rtol=0)


def test_dynamic_scaling_beyond_the_trained_context_as_tokens_are_appended(
    tmp_path: Path, backends: dict[str, Backend]
) -> None:
    rope = {"rope_theta": 500.0, "rope_type": "dynamic", "factor": 4.0}
    model = random_model("llama", rope_parameters=rope, max_position_embeddings=16)
    config = save(model, tmp_path)
    tokens = prompts(config["vocab_size"])[3]
    chunks = (12, *(1,) * (len(tokens) - 12))
    expected, cache = [], None
    with torch.inference_mode():
        for part in tokens.split(list(chunks)):
            result = model(part[None], past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            expected.append(result.logits[0])
    for backend in backends.values():
        (ours,) = PagedModel(load(tmp_path, config, backend), block_size=4).replay([tokens], [chunks])
        torch.testing.assert_close(ours, torch.cat(expected), atol=1e-4, rtol=0)


def test_a_batch_gives_each_member_what_it_gets_alone(tmp_path: Path, backends: dict[str, Backend]) -> None:
    config = save(random_model("qwen3", head_dim=16), tmp_path)
    sequences = prompts(config["vocab_size"])
    for backend in backends.values():
        decoder = load(tmp_path, config, backend)
        together = PagedModel(decoder, block_size=4).replay(sequences, CHUNKS)
        for tokens, chunk_sizes, batched in zip(sequences, CHUNKS, together, strict=True):
            (alone,) = PagedModel(decoder, block_size=4, seed=9).replay([tokens], [chunk_sizes])
            torch.testing.assert_close(batched, alone, atol=1e-4, rtol=0)
