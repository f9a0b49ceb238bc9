"""What a rank reads of a checkpoint, and the memory it takes to do so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.loading_memory import measure_loading
from tokenwire_service.errors import UnsupportedModelError
from tokenwire_service.kernels.backend import reference_backend
from tokenwire_service.models.checkpoint import checkpoint_tensors
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import load_weights
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.weights.gguf_names import hf_name
from tokenwire_service.weights.resolved import GenerationDefaults, ModelKind, ResolvedModel
from tokenwire_service.weights.stored import EVERYTHING, StoredTensor
from tokenwire_service.weights.stream import stream_tensors

SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LARGE = SMALL | {"vocab_size": 16_003, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12}
ALLOWED = 1.2


class Counted:
    """A StoredTensor that adds up the bytes it gives out."""

    def __init__(self, stored: StoredTensor, counts: list[int]) -> None:
        self._stored = stored
        self._counts = counts
        self.shape, self.dtype = stored.shape, stored.dtype

    def numel(self) -> int:
        return self._stored.numel()

    def read(self, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Iterator[Tensor]:
        for piece in self._stored.read(rows, columns):
            self._counts.append(piece.nbytes)
            yield piece


def write_safetensors(config: dict[str, Any], directory: Path) -> ResolvedModel:
    tensors = {name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shapes(config).items()}
    path = directory / "model.safetensors"
    save_file(tensors, path)
    return resolved(config, ModelKind.LOCAL, path)


def write_q8_gguf(config: dict[str, Any], directory: Path) -> ResolvedModel:
    """Matrices in blocks of 8 bits that are all zero, vectors in float32."""
    path = directory / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    ours = {hf_name(name): name for name in gguf_names(config)}
    for name, shape in shapes(config).items():
        if len(shape) == 1:
            writer.add_tensor(ours[name], np.ones(shape, dtype=np.float32))
        else:
            blocks = np.zeros((shape[0], shape[1] // 32 * 34), dtype=np.uint8)
            writer.add_tensor(ours[name], blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return resolved(config, ModelKind.GGUF, path)


def gguf_names(config: dict[str, Any]) -> list[str]:
    parts = ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    layers = range(config["num_hidden_layers"])
    outside = ["token_embd.weight", "output_norm.weight", "output.weight"]
    return [*outside, *(f"blk.{layer}.{part}.weight" for layer in layers for part in parts)]


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return dict(checkpoint_tensors(read_spec(config)))


def resolved(config: dict[str, Any], kind: ModelKind, path: Path) -> ResolvedModel:
    return ResolvedModel("m", "", kind, config, (path,), path.parent, GenerationDefaults())


def bytes_read(model: ResolvedModel, rank: int, size: int) -> int:
    counts: list[int] = []
    tensors = ((name, Counted(stored, counts)) for name, stored in stream_tensors(model))
    group = TensorParallelGroup(rank, size)
    load_weights(read_spec(model.config), tensors, torch.float32, group, reference_backend())
    return sum(counts)


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_rank_reads_its_slices_and_nothing_else(tmp_path: Path, kind: str) -> None:
    """Matrices by their share; a KV head whole where there are more ranks than heads; norms whole."""
    model, number_bytes = (
        (write_safetensors(SMALL, tmp_path), 2) if kind == "safetensors" else (write_q8_gguf(SMALL, tmp_path), 4)
    )
    matrices = {name: math.prod(shape) for name, shape in shapes(SMALL).items() if len(shape) == 2}
    kv = sum(count for name, count in matrices.items() if "k_proj" in name or "v_proj" in name)
    others = sum(matrices.values()) - kv
    norms = sum(shape[0] * (2 if kind == "safetensors" else 4) for shape in shapes(SMALL).values() if len(shape) == 1)
    for size in (1, 2, 4, 8):
        for rank in range(size):
            share = others // size + kv // min(size, 2)
            assert bytes_read(model, rank, size) == share * number_bytes + norms


def test_ranks_beyond_the_vocabulary_read_none_of_it(tmp_path: Path) -> None:
    config = SMALL | {"vocab_size": 5}
    model = write_safetensors(config, tmp_path)
    read = [bytes_read(model, rank, 4) for rank in range(4)]
    row = 2 * 2 * SMALL["hidden_size"]
    assert [most - read[3] for most in read] == [2 * row, 2 * row, row, 0]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResolvedModel]:
    """320 MB in 16 bits, 170 MB in blocks of 8 bits."""
    return {
        "safetensors": write_safetensors(LARGE, tmp_path_factory.mktemp("safetensors")),
        "gguf": write_q8_gguf(LARGE, tmp_path_factory.mktemp("gguf")),
    }


@pytest.mark.parametrize(
    ("kind", "rank", "size"),
    [("safetensors", 0, 1), ("safetensors", 1, 2), ("safetensors", 3, 4), ("gguf", 0, 1), ("gguf", 1, 2)],
)
def test_loading_takes_little_more_memory_than_the_share(
    large: dict[str, ResolvedModel], kind: str, rank: int, size: int
) -> None:
    memory = measure_loading(large[kind], torch.float16, rank, size)
    all_bytes = 2 * sum(math.prod(shape) for shape in shapes(LARGE).values() if len(shape) == 2)
    assert all_bytes / size < memory.share < 1.1 * all_bytes / size
    assert memory.share < memory.peak < ALLOWED * memory.share


@pytest.mark.parametrize(
    ("overrides", "size", "message"),
    [
        ({}, 3, "--num-shard 3: .* does not divide over 3 shards; use 1, 2, 4 or 8"),
        ({}, 16, "use 1, 2, 4 or 8"),
        ({"num_attention_heads": 6, "num_key_value_heads": 3}, 4, "3 KV heads .* use 1 or 2"),
        ({"num_attention_heads": 6, "num_key_value_heads": 1, "intermediate_size": 255}, 6, "use 1 or 3"),
    ],
)
def test_a_number_of_shards_that_cannot_be_is_refused_with_those_that_can(
    overrides: dict[str, Any], size: int, message: str
) -> None:
    spec = read_spec(SMALL | {"hidden_size": 96, "head_dim": 8} | overrides)
    with pytest.raises(UnsupportedModelError, match=message):
        load_weights(spec, (), torch.float32, TensorParallelGroup(0, size), reference_backend())
