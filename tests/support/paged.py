"""Poisoned KV blocks in shuffled order and flat batches over them, as a runner would build them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenwire_service.layers.batch import AttentionBatch, LayerKV
from tokenwire_service.models.decoder import Decoder

UNUSED_BLOCK_ID = 2**31 - 1
"""Fills unused block table entries: reading one would be an index error."""


def poisoned_blocks(num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int) -> LayerKV:
    """Blocks full of NaN: a slot that is read before it is written shows."""
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    return LayerKV(torch.full(shape, float("nan")), torch.full(shape, float("nan")))


@dataclass
class BlockTables:
    """Hands out blocks of a shuffled pool and describes flat batches over them."""

    num_blocks: int
    block_size: int
    seed: int = 0
    tables: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free = torch.randperm(
            self.num_blocks, generator=torch.Generator("cpu").manual_seed(self.seed), device="cpu"
        ).tolist()

    def batch(self, rows: Sequence[tuple[int, int, int]]) -> tuple[AttentionBatch, Tensor]:
        """rows of (sequence id, query length, sequence length) → the batch and its positions int64 [T]."""
        positions, slots = [], []
        width = 2 + max(-(-length // self.block_size) for _, _, length in rows)
        tables = torch.full((len(rows), width), UNUSED_BLOCK_ID, dtype=torch.int32)
        for row, (seq_id, query_len, length) in enumerate(rows):
            table = self._grow(seq_id, length)
            tables[row, : len(table)] = torch.tensor(table, dtype=torch.int32)
            at = torch.arange(length - query_len, length)
            positions.append(at)
            slots.append(torch.tensor(table)[at // self.block_size] * self.block_size + at % self.block_size)
        lengths = torch.tensor([length for _, _, length in rows], dtype=torch.int32)
        query_lens = torch.tensor([0, *(query_len for _, query_len, _ in rows)])
        batch = AttentionBatch(
            query_start_loc=query_lens.cumsum(0).to(torch.int32),
            seq_lens=lengths,
            block_tables=tables,
            slot_mapping=torch.cat(slots),
            max_query_len=int(query_lens.max()),
            max_seq_len=int(lengths.max()),
        )
        return batch, torch.cat(positions)

    def _grow(self, seq_id: int, length: int) -> list[int]:
        table = self.tables.setdefault(seq_id, [])
        while len(table) * self.block_size < length:
            table.append(self._free.pop())
        return table


class PagedModel:
    """A decoder with its own blocks; `step` is one engine step, every position's logits included."""

    def __init__(self, decoder: Decoder, *, block_size: int, num_blocks: int = 64, seed: int = 0) -> None:
        spec = decoder.spec
        self._decoder = decoder
        self._blocks = BlockTables(num_blocks, block_size, seed)
        self._lengths: dict[int, int] = {}
        self._kv = [
            poisoned_blocks(num_blocks, decoder.num_kv_heads, block_size, spec.head_dim) for _ in range(spec.num_layers)
        ]

    @torch.inference_mode()
    def step(self, rows: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """rows of (sequence id, its next tokens int64 [Q]) → per row logits [Q, V]."""
        plan = []
        for seq_id, tokens in rows:
            self._lengths[seq_id] = self._lengths.get(seq_id, 0) + len(tokens)
            plan.append((seq_id, len(tokens), self._lengths[seq_id]))
        batch, positions = self._blocks.batch(plan)
        hidden = self._decoder.forward(torch.cat([tokens for _, tokens in rows]), positions, batch, self._kv)
        return list(self._decoder.logits(hidden).split([len(tokens) for _, tokens in rows]))

    def replay(self, sequences: Sequence[Tensor], chunks: Sequence[Sequence[int]]) -> list[Tensor]:
        """Feeds every sequence in its own chunk sizes, all of them batched step by step → logits [L, V] of each."""
        pending = [list(tokens.split(list(sizes))) for tokens, sizes in zip(sequences, chunks, strict=True)]
        logits: list[list[Tensor]] = [[] for _ in sequences]
        while any(pending):
            rows = [(seq_id, parts.pop(0)) for seq_id, parts in enumerate(pending) if parts]
            for (seq_id, _), part in zip(rows, self.step(rows), strict=True):
                logits[seq_id].append(part)
        return [torch.cat(parts) for parts in logits]
