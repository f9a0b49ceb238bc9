"""A layer, and a batch on its way through the layers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenwire_service.kernels.gather_rows import gather_rows
from tokenwire_service.layers.attention import Attention
from tokenwire_service.layers.batch import AttentionBatch, KeptTokens, LayerKV
from tokenwire_service.layers.mlp import GatedMLP
from tokenwire_service.layers.norm import AddRMSNorm


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Pre-norm block: attention, then MLP."""

    attention_norm: AddRMSNorm
    attention: Attention
    mlp_norm: AddRMSNorm
    mlp: GatedMLP

    def __call__(
        self, residual: Tensor, delta: Tensor | None, cos_sin: Tensor, batch: AttentionBatch, kv: LayerKV
    ) -> Tensor:
        """residual [T, E], to which delta (the layer before's output) is still to be added → this layer's own delta."""
        delta = self.attention(self.attention_norm(residual, delta), cos_sin, batch, kv)
        return self.mlp(self.mlp_norm(residual, delta))

    def for_kept(
        self,
        residual: Tensor,
        delta: Tensor | None,
        cos_sin: Tensor,
        batch: AttentionBatch,
        kv: LayerKV,
        kept: KeptTokens,
    ) -> tuple[Tensor, Tensor]:
        """The same for the kept tokens alone → their residual and delta, [R, E] each."""
        delta = self.attention(self.attention_norm(residual, delta), cos_sin, batch, kv, kept)
        residual = gather_rows(residual, kept.tokens, self.mlp.backend)
        return residual, self.mlp(self.mlp_norm(residual, delta))

    def store(
        self, residual: Tensor, delta: Tensor | None, cos_sin: Tensor, batch: AttentionBatch, kv: LayerKV
    ) -> Tensor:
        """Its first part: the keys and values, and the queries [T, H, D], which are returned."""
        return self.attention.store(self.attention_norm(residual, delta), cos_sin, batch, kv)


@dataclass(slots=True)
class PartialPass:
    """A batch between two layers. Shapes: T packed tokens."""

    batch: AttentionBatch
    cos_sin: Tensor
    """[T, R]."""
    residual: Tensor
    """[T, E]; layers change it in place."""
    delta: Tensor | None = None
    """[T, E]: what the layer before gave, still to be added; None before the first layer."""
    num_layers: int = 0
    """Layers it went through."""

    def halves(self) -> tuple[PartialPass, PartialPass]:
        """Its first and its last tokens, over the same residual."""
        at = len(self.residual) // 2
        first, second = split_batch(self.batch, at)
        delta = (None, None) if self.delta is None else (self.delta[:at], self.delta[at:])
        return (
            PartialPass(first, self.cos_sin[:at], self.residual[:at], delta[0], self.num_layers),
            PartialPass(second, self.cos_sin[at:], self.residual[at:], delta[1], self.num_layers),
        )


def split_batch(batch: AttentionBatch, at: int) -> tuple[AttentionBatch, AttentionBatch]:
    """The first `at` tokens and the others, each with all S rows: a row that is all in the other half has no query.
    What the first half stores, the second reads."""
    starts = batch.query_start_loc
    first, second = starts.clamp(max=at), (starts - at).clamp(min=0)
    behind = torch.diff(second)
    return (
        replace(batch, query_start_loc=first, seq_lens=batch.seq_lens - behind, slot_mapping=batch.slot_mapping[:at]),
        replace(batch, query_start_loc=second, slot_mapping=batch.slot_mapping[at:]),
    )
