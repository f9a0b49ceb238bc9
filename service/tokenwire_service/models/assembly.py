"""From named parameters to the decoder's layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenwire_service.kernels.backend import Backend, LinearFormat
from tokenwire_service.kernels.linear import LinearWeight, pack_weight
from tokenwire_service.kernels.paged_attention import AttentionOptions
from tokenwire_service.layers.attention import Attention, HeadNorm
from tokenwire_service.layers.embedding import VocabParallelEmbedding, VocabParallelHead
from tokenwire_service.layers.linear import ColumnParallelLinear, RowParallelLinear
from tokenwire_service.layers.mlp import GatedMLP
from tokenwire_service.layers.norm import AddRMSNorm
from tokenwire_service.layers.rotary import Rotary
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.models.passing import DecoderLayer
from tokenwire_service.models.shard import kv_heads, query_heads
from tokenwire_service.models.spec import ModelSpec
from tokenwire_service.parallel.group import TensorParallelGroup


@dataclass(frozen=True, slots=True)
class Weights:
    """One rank's parameters under the names of `checkpoint.parameters`."""

    linear: dict[str, LinearWeight]
    plain: dict[str, Tensor]


def assemble(spec: ModelSpec, weights: Weights, group: TensorParallelGroup, backend: Backend) -> Decoder:
    """The decoder over complete `weights`."""
    table = weights.linear["embedding"]
    return Decoder(
        spec=spec,
        num_kv_heads=len(kv_heads(spec, group)),
        backend=backend,
        embedding=VocabParallelEmbedding(table, spec.vocab_size, group),
        rotary=Rotary(spec.rope, backend.device),
        layers=tuple(_layer(spec, weights, index, group, backend) for index in range(spec.num_layers)),
        norm=AddRMSNorm(weights.plain["norm"], spec.norm_eps, backend),
        head=VocabParallelHead(_head(spec, weights, table, backend), spec.vocab_size, group),
    )


def _head(spec: ModelSpec, weights: Weights, table: LinearWeight, backend: Backend) -> LinearWeight:
    if not spec.tied_embeddings:
        return weights.linear["head"]
    # Rows of native formats can be looked up and multiplied with; others need a second copy for the product.
    return pack_weight(table.data, backend) if table.format is LinearFormat.PLAIN else table


def _layer(spec: ModelSpec, weights: Weights, index: int, group: TensorParallelGroup, backend: Backend) -> DecoderLayer:
    prefix = f"layers.{index}"
    linear, plain = weights.linear, weights.plain
    return DecoderLayer(
        attention_norm=AddRMSNorm(plain[f"{prefix}.attention_norm"], spec.norm_eps, backend),
        attention=_attention(spec, weights, index, group, backend),
        mlp_norm=AddRMSNorm(plain[f"{prefix}.mlp_norm"], spec.norm_eps, backend),
        mlp=GatedMLP(
            ColumnParallelLinear(linear[f"{prefix}.gate_up"], plain.get(f"{prefix}.gate_up_bias")),
            RowParallelLinear(linear[f"{prefix}.down"], plain.get(f"{prefix}.down_bias"), group),
            backend,
        ),
    )


def _attention(
    spec: ModelSpec, weights: Weights, index: int, group: TensorParallelGroup, backend: Backend
) -> Attention:
    prefix = f"layers.{index}"
    linear, plain = weights.linear, weights.plain
    head_norm = HeadNorm(plain[f"{prefix}.q_norm"], plain[f"{prefix}.k_norm"], spec.norm_eps) if spec.qk_norm else None
    return Attention(
        qkv=ColumnParallelLinear(linear[f"{prefix}.qkv"], plain.get(f"{prefix}.qkv_bias")),
        output=RowParallelLinear(linear[f"{prefix}.output"], plain.get(f"{prefix}.output_bias"), group),
        head_norm=head_norm,
        num_heads=len(query_heads(spec, group)),
        rotated=spec.rope_layers[index],
        interleaved=spec.rope.interleaved,
        options=AttentionOptions(scale=spec.head_dim**-0.5, window=spec.windows[index]),
        backend=backend,
    )
