"""Embedding lookup in one rank's part of the vocabulary, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def embed_gather(input_ids: Tensor, table: Tensor, first_id: int) -> Tensor:
    """input_ids int [T], table [rows, E] → [T, E]; zeros where an id is not in [first_id, first_id + rows)."""
    local = input_ids - first_id
    inside = (local >= 0) & (local < table.shape[0])
    rows = table[local.clamp(0, max(table.shape[0] - 1, 0))]
    return rows.masked_fill_(~inside[:, None], 0)
