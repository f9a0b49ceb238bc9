"""The inputs of a decode step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """Buffers for the inputs of one decode step of S rows, one token each."""

    input_ids: Tensor
    """int64 [S]: each row's last token; 0 for padded rows."""
    positions: Tensor
    """int64 [S]: its position; 0 for padded rows."""
    seq_lens: Tensor
    """int32 [S]: tokens up to and including it; 0 for padded rows."""
    slot_mapping: Tensor
    """int64 [S]: block_id * block_size + offset where its key and value go; -1 for padded rows
    and for a position beyond the row's blocks."""
    block_tables: Tensor
    """int32 [S, M]: each row's blocks; 0 for padded rows."""
