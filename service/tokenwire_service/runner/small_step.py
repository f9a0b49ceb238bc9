"""The step of few tokens more than a decode: guesses to verify, or a small part of a prompt. It is worth recording like
a decode: without, what Python takes to launch it is much of its time.

Shapes: T packed tokens, S rows, V' tokens of the vocabulary that this rank holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tokenwire_service.kernels.gather_rows import gather_rows
from tokenwire_service.layers.batch import AttentionBatch
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.runner.forward_batch import ForwardBatch
from tokenwire_service.runner.kv_cache import KVCache
from tokenwire_service.runner.sizing import EngineSizes
from tokenwire_service.runner.step_graphs import StepGraphs, bucket_sizes
from tokenwire_service.runner.step_rows import StepRows


@dataclass(frozen=True, slots=True)
class SpeculationLimits:
    """The largest step with guesses."""

    num_guesses: int
    """In one row at most; 0 is no speculation."""
    max_rows: int


_SMALL_CHUNK = 32
"""Tokens of prompts in a step that is recorded, where steps keep their own size."""


class SmallStep:
    """Recordings read and write the tensors made here. With buckets there is one for each number of rows, whose tokens
    are padded to the most these rows can have: the padding belongs to no row. Prompts are left to others then."""

    def __init__(
        self, decoder: Decoder, kv_cache: KVCache, sizes: EngineSizes, graphs: StepGraphs, limits: SpeculationLimits
    ) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._sizes = sizes
        self._graphs = graphs
        self._width = 1 + limits.num_guesses
        rows = limits.max_rows if limits.num_guesses else 0
        self._row_buckets = bucket_sizes(rows) if rows and graphs.bucket_sizes else ()
        self._keeps_size = not graphs.bucket_sizes
        self._max_rows = sizes.max_num_sequences if self._keeps_size else max(rows, *self._row_buckets, 0)
        small = self._max_rows + _SMALL_CHUNK if self._keeps_size else 0
        self._max_tokens = max(self._max_rows * self._width if rows else 0, small)
        tokens, device = self._max_tokens, decoder.backend.device
        self._input_ids = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._positions = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._slot_mapping = torch.full((tokens,), -1, dtype=torch.int64, device=device)
        self._query_start_loc = torch.zeros(self._max_rows + 1, dtype=torch.int32, device=device)
        self._seq_lens = torch.zeros(self._max_rows, dtype=torch.int32, device=device)
        self._block_tables = torch.zeros(
            (self._max_rows, sizes.max_blocks_per_sequence), dtype=torch.int32, device=device
        )
        self._hidden: dict[tuple[int, int], Tensor] = {}
        self._logits: Tensor | None = None
        if self._row_buckets:
            self._logits = torch.empty((tokens, decoder.head.width), dtype=torch.float32, device=device)

    @torch.inference_mode()
    def record(self) -> None:
        """Record every bucket, the largest first. Call while no step is in flight."""
        for rows in reversed(self._row_buckets):
            key = (rows * self._width, rows)
            self._graphs.prepare(("small", key), partial(self._compute, key))

    def takes(self, rows: StepRows) -> bool:
        """Whether this is such a step. With buckets every token is a row's last or a guess."""
        if self._keeps_size:
            return (
                int(rows.counts.sum()) <= max(len(rows) * self._width, len(rows) + _SMALL_CHUNK)
                and bool(rows.samples.any())
                and not rows.scores_prompt
            )
        return (
            len(rows) <= self._max_rows
            and bool(rows.samples.all())
            and bool((rows.counts == 1 + rows.num_drafts).all())
            and int(rows.counts.max()) <= self._width
            and not rows.scores_prompt
        )

    def forward(self, batch: ForwardBatch) -> Tensor:
        """float32 logits [R, V'] of the tokens that are drawn from, in a step it takes; good until the next call."""
        num_tokens, num_rows = len(batch.input_ids), len(batch.attention.seq_lens)
        key = self._padded(num_tokens, num_rows)
        self._load(batch, num_tokens, num_rows, *key)
        self._graphs.run(("small", key), partial(self._compute, key))
        if self._logits is not None:
            return self._logits[:num_tokens]
        return self._decoder.logits(gather_rows(self._hidden[key], batch.kept.tokens, self._decoder.backend))

    def _padded(self, num_tokens: int, num_rows: int) -> tuple[int, int]:
        if not self._row_buckets:
            return num_tokens, num_rows
        rows = next(size for size in self._row_buckets if size >= num_rows)
        return rows * self._width, rows

    def _load(self, batch: ForwardBatch, num_tokens: int, num_rows: int, padded_tokens: int, padded_rows: int) -> None:
        attention = batch.attention
        self._input_ids[:num_tokens].copy_(batch.input_ids)
        self._positions[:num_tokens].copy_(batch.positions)
        self._slot_mapping[:num_tokens].copy_(attention.slot_mapping)
        self._query_start_loc[: num_rows + 1].copy_(attention.query_start_loc)
        self._seq_lens[:num_rows].copy_(attention.seq_lens)
        self._block_tables[:num_rows].copy_(attention.block_tables)
        self._slot_mapping[num_tokens:padded_tokens].fill_(-1)
        self._query_start_loc[num_rows + 1 : padded_rows + 1].fill_(num_tokens)
        self._seq_lens[num_rows:padded_rows].fill_(0)

    def _compute(self, key: tuple[int, int]) -> None:
        tokens, rows = key
        attention = AttentionBatch(
            query_start_loc=self._query_start_loc[: rows + 1],
            seq_lens=self._seq_lens[:rows],
            block_tables=self._block_tables[:rows],
            slot_mapping=self._slot_mapping[:tokens],
            max_query_len=max(self._width, tokens - rows + 1) if self._keeps_size else self._width,
            max_seq_len=self._sizes.max_total_tokens,
        )
        hidden = self._decoder.forward(
            self._input_ids[:tokens], self._positions[:tokens], attention, self._kv_cache.layers
        )
        if self._logits is None:
            self._hidden[key] = hidden
        else:
            self._decoder.logits(hidden, self._logits[:tokens])
