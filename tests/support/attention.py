"""Attention over poisoned blocks, and what it must give, one query at a time in float64."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.support.paged import BlockTables, poisoned_blocks
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.paged_attention import AttentionOptions, paged_attention
from tokenwire_service.layers.batch import AttentionBatch, LayerKV

Heads = tuple[int, int]


class Case:
    """A batch over poisoned blocks, and the contiguous keys and values it stands for.

    rows: (query length, sequence length). dtype is that of q, kv_dtype that of the blocks.
    """

    def __init__(
        self,
        heads: Heads,
        head_dim: int,
        block_size: int,
        rows: tuple[tuple[int, int], ...],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        torch.manual_seed(seed)
        kv_dtype = kv_dtype or dtype
        num_heads, num_kv_heads = heads
        num_blocks = sum(-(-length // block_size) for _, length in rows) + 2
        kv = poisoned_blocks(num_blocks, num_kv_heads, block_size, head_dim)
        self.batch, _ = BlockTables(num_blocks, block_size, seed).batch([(i, *row) for i, row in enumerate(rows)])
        self.q = torch.randn(sum(query_len for query_len, _ in rows), num_heads, head_dim).to(dtype)
        self.keys = [torch.randn(num_kv_heads, length, head_dim).to(kv_dtype).float() for _, length in rows]
        self.values = [torch.randn(num_kv_heads, length, head_dim).to(kv_dtype).float() for _, length in rows]
        for table, keys, values in zip(self.batch.block_tables.tolist(), self.keys, self.values, strict=True):
            for at in range(0, keys.shape[1], block_size):
                used = min(block_size, keys.shape[1] - at)
                kv.key[table[at // block_size], :, :used] = keys[:, at : at + used]
                kv.value[table[at // block_size], :, :used] = values[:, at : at + used]
        self.kv = LayerKV(kv.key.to(kv_dtype), kv.value.to(kv_dtype))

    def run(self, options: AttentionOptions, backend: Backend) -> Tensor:
        return attend(self.q, self.kv, self.batch, options, backend)

    def run_first_alone(self, options: AttentionOptions, backend: Backend) -> Tensor:
        """The first row, which must be a decode, without the others."""
        batch = replace(
            self.batch,
            query_start_loc=self.batch.query_start_loc[:2],
            seq_lens=self.batch.seq_lens[:1],
            block_tables=self.batch.block_tables[:1].contiguous(),
            slot_mapping=self.batch.slot_mapping[:1],
        )
        return attend(self.q[:1], self.kv, batch, options, backend)

    def expected(self, options: AttentionOptions) -> Tensor:
        """In float64, query by query."""
        out = torch.empty_like(self.q, dtype=torch.float64)
        bounds = self.batch.query_start_loc.tolist()
        for row, length in enumerate(self.batch.seq_lens.tolist()):
            for token in range(bounds[row], bounds[row + 1]):
                position = length - (bounds[row + 1] - token)
                out[token] = one_query(
                    self.q[token].double(), self.keys[row].double(), self.values[row].double(), position, options
                )
        return out


def one_query(q: Tensor, keys: Tensor, values: Tensor, position: int, options: AttentionOptions) -> Tensor:
    """q [H, D] at `position` over keys and values [K, L, D]."""
    first = 0 if options.window is None else max(0, position - options.window + 1)
    group = q.shape[0] // keys.shape[0]
    seen_keys = keys[:, first : position + 1].repeat_interleave(group, dim=0) * options.key_scale
    seen_values = values[:, first : position + 1].repeat_interleave(group, dim=0) * options.value_scale
    scores = torch.einsum("hd,hld->hl", q, seen_keys) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if options.alibi_slopes is not None:
        scores = scores - options.alibi_slopes.double()[:, None] * (position - torch.arange(first, position + 1))
    if options.sinks is not None:
        scores = torch.cat((scores, options.sinks.double()[:, None]), dim=-1)
    weights = scores.softmax(dim=-1)[:, : position + 1 - first]
    return torch.einsum("hl,hld->hd", weights, seen_values)


def attend(q: Tensor, kv: LayerKV, batch: AttentionBatch, options: AttentionOptions, backend: Backend) -> Tensor:
    return paged_attention(
        q,
        kv.key,
        kv.value,
        batch.query_start_loc,
        batch.seq_lens,
        batch.block_tables,
        options=options,
        backend=backend,
    )
