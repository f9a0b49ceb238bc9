"""What attention needs to know about a step's flat batch. Shapes: T packed tokens, S sequences."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Row s of the batch is query tokens [query_start_loc[s], query_start_loc[s+1]) of a sequence whose length,
    those tokens included, is seq_lens[s]. Prefill, chunk, decode and verification are all this."""

    query_start_loc: Tensor
    """int32 [S + 1]."""
    seq_lens: Tensor
    """int32 [S]."""
    block_tables: Tensor
    """int32 [S, max blocks of any row]; entries past a row's blocks are never read."""
    slot_mapping: Tensor
    """int64 [T]: block_id * block_size + offset where each token's K and V are stored."""
    max_query_len: int
    max_seq_len: int


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """The tokens of a batch whose final hidden states somebody wants: the last few of each row, or none of it. The last
    layer computes nothing else for the others but their keys and values."""

    tokens: Tensor
    """int64 [R]: packed tokens, ascending."""
    query_start_loc: Tensor
    """int32 [S + 1]: where each row's begin among them."""


@dataclass(frozen=True, slots=True)
class LayerKV:
    """One layer's blocks: key and value, each [N, K, B, D], so that one block of one head is contiguous."""

    key: Tensor
    value: Tensor
