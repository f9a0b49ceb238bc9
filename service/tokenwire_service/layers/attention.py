"""Self-attention over the KV blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.gather_rows import gather_rows
from tokenwire_service.kernels.paged_attention import AttentionOptions, paged_attention
from tokenwire_service.kernels.qk_norm_rope_store import qk_norm_rope_store
from tokenwire_service.layers.batch import AttentionBatch, KeptTokens, LayerKV
from tokenwire_service.layers.linear import ColumnParallelLinear, RowParallelLinear


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Weights [D] of the RMSNorm on each query and key head."""

    query: Tensor
    key: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention of this rank's heads; keys and values are stored before anything is read."""

    qkv: ColumnParallelLinear
    output: RowParallelLinear
    head_norm: HeadNorm | None
    num_heads: int
    """Query heads of this rank."""
    rotated: bool
    interleaved: bool
    options: AttentionOptions
    backend: Backend

    def __call__(
        self, x: Tensor, cos_sin: Tensor, batch: AttentionBatch, kv: LayerKV, kept: KeptTokens | None = None
    ) -> Tensor:
        """x [T, E], cos_sin [T, R] → [T, E], or only the kept tokens' part of it; writes the T new keys and values into
        kv."""
        return self.mix(self.store(x, cos_sin, batch, kv), batch, kv, kept)

    def mix(self, q: Tensor, batch: AttentionBatch, kv: LayerKV, kept: KeptTokens | None = None) -> Tensor:
        """What `store` returned, [T, H, D] → [T, E], or only the kept tokens' part of it."""
        if kept is not None:
            q = gather_rows(q.flatten(1), kept.tokens, self.backend).view(-1, *q.shape[1:])
        mixed = paged_attention(
            q,
            kv.key,
            kv.value,
            batch.query_start_loc if kept is None else kept.query_start_loc,
            batch.seq_lens,
            batch.block_tables,
            options=self.options,
            backend=self.backend,
        )
        return self.output(mixed.flatten(1))

    def store(self, x: Tensor, cos_sin: Tensor, batch: AttentionBatch, kv: LayerKV) -> Tensor:
        """Writes the T new keys and values into kv and returns the queries [T, H, D]."""
        norm = self.head_norm
        return qk_norm_rope_store(
            self.qkv(x),
            cos_sin if self.rotated else None,
            batch.slot_mapping,
            kv.key,
            kv.value,
            num_heads=self.num_heads,
            interleaved=self.interleaved,
            q_norm=norm.query if norm else None,
            k_norm=norm.key if norm else None,
            eps=norm.eps if norm else 0.0,
            backend=self.backend,
        )
