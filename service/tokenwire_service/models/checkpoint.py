"""Which checkpoint tensors make which parameter, and how each is cut over ranks: declared here and nowhere else."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from tokenwire_service.models.spec import ModelSpec


class Cut(enum.Enum):
    """How a tensor is divided over the ranks of a tensor-parallel group."""

    WHOLE = "every rank holds all of it"
    ROWS = "even parts of dimension 0"
    HEAD_ROWS = "whole query heads of dimension 0, those of the rank's KV heads"
    KV_ROWS = "whole KV heads of dimension 0, repeated where there are more ranks than heads"
    VOCAB_ROWS = "parts of dimension 0, the last ones padded with zeros"
    COLUMNS = "even parts of dimension 1"
    HEAD_COLUMNS = "whole query heads of dimension 1, those of the rank's KV heads"
    FIRST_RANK = "rank 0 alone holds it"


class Use(enum.Enum):
    """What a parameter is for."""

    LINEAR = "a matrix that is multiplied with, packed as the backend likes"
    TABLE = "a matrix whose rows are looked up, packed so that they can be"
    PLAIN = "a vector"


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint tensor, by its Hugging Face name and shape."""

    name: str
    shape: tuple[int, ...]
    cut: Cut


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the decoder: its parts one after the other along dimension 0."""

    name: str
    parts: tuple[Part, ...]
    use: Use


def parameters(spec: ModelSpec) -> Iterator[Parameter]:
    """Every parameter of the decoder, in the order of computation."""
    vocab, hidden = spec.vocab_size, spec.hidden_size
    yield Parameter("embedding", (Part("model.embed_tokens.weight", (vocab, hidden), Cut.VOCAB_ROWS),), Use.TABLE)
    for layer in range(spec.num_layers):
        yield from _attention(spec, f"layers.{layer}", f"model.layers.{layer}")
        yield from _mlp(spec, f"layers.{layer}", f"model.layers.{layer}")
    yield _plain("norm", "model.norm.weight", (hidden,))
    if not spec.tied_embeddings:
        yield Parameter("head", (Part("lm_head.weight", (vocab, hidden), Cut.VOCAB_ROWS),), Use.LINEAR)


def checkpoint_tensors(spec: ModelSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor a checkpoint of this model must have."""
    return [(part.name, part.shape) for parameter in parameters(spec) for part in parameter.parts]


def is_redundant(spec: ModelSpec, name: str) -> bool:
    """Whether a checkpoint tensor holds nothing new: a rotary buffer, or the head of a model that ties it."""
    return name.endswith(".rotary_emb.inv_freq") or (spec.tied_embeddings and name == "lm_head.weight")


def _attention(spec: ModelSpec, ours: str, theirs: str) -> Iterator[Parameter]:
    hidden, source = spec.hidden_size, f"{theirs}.self_attn"
    query, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    merged = (("q_proj", query, Cut.HEAD_ROWS), ("k_proj", kv, Cut.KV_ROWS), ("v_proj", kv, Cut.KV_ROWS))
    yield _plain(f"{ours}.attention_norm", f"{theirs}.input_layernorm.weight", (hidden,))
    yield _merged(f"{ours}.qkv", source, merged, hidden)
    if spec.qkv_bias:
        yield _merged_bias(f"{ours}.qkv_bias", source, merged)
    if spec.qk_norm:
        yield _plain(f"{ours}.q_norm", f"{source}.q_norm.weight", (spec.head_dim,))
        yield _plain(f"{ours}.k_norm", f"{source}.k_norm.weight", (spec.head_dim,))
    yield Parameter(f"{ours}.output", (Part(f"{source}.o_proj.weight", (hidden, query), Cut.HEAD_COLUMNS),), Use.LINEAR)
    if spec.output_bias:
        yield _plain(f"{ours}.output_bias", f"{source}.o_proj.bias", (hidden,), Cut.FIRST_RANK)


def _mlp(spec: ModelSpec, ours: str, theirs: str) -> Iterator[Parameter]:
    hidden, inner, source = spec.hidden_size, spec.intermediate_size, f"{theirs}.mlp"
    merged = (("gate_proj", inner, Cut.ROWS), ("up_proj", inner, Cut.ROWS))
    yield _plain(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm.weight", (hidden,))
    yield _merged(f"{ours}.gate_up", source, merged, hidden)
    if spec.mlp_bias:
        yield _merged_bias(f"{ours}.gate_up_bias", source, merged)
    yield Parameter(f"{ours}.down", (Part(f"{source}.down_proj.weight", (hidden, inner), Cut.COLUMNS),), Use.LINEAR)
    if spec.mlp_bias:
        yield _plain(f"{ours}.down_bias", f"{source}.down_proj.bias", (hidden,), Cut.FIRST_RANK)


def _plain(name: str, source: str, shape: tuple[int, ...], cut: Cut = Cut.WHOLE) -> Parameter:
    return Parameter(name, (Part(source, shape, cut),), Use.PLAIN)


def _merged(name: str, source: str, merged: tuple[tuple[str, int, Cut], ...], width: int) -> Parameter:
    parts = tuple(Part(f"{source}.{part}.weight", (rows, width), cut) for part, rows, cut in merged)
    return Parameter(name, parts, Use.LINEAR)


def _merged_bias(name: str, source: str, merged: tuple[tuple[str, int, Cut], ...]) -> Parameter:
    parts = tuple(Part(f"{source}.{part}.bias", (rows,), cut) for part, rows, cut in merged)
    return Parameter(name, parts, Use.PLAIN)
