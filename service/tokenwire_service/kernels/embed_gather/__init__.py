"""Embedding lookup in one rank's part of the vocabulary."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding

from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.embed_gather import reference


def embed_gather(input_ids: Tensor, table: Tensor, first_id: int, vocab_size: int, backend: Backend) -> Tensor:
    """input_ids int [T], table [rows, E] → [T, E]; zeros for ids outside [first_id, first_id + rows).

    Raises ValueError for another layout. Where the table holds the whole vocabulary, an id outside of it is an
    IndexError, but for a GPU, which cannot be asked without waiting for it.
    """
    if input_ids.dim() != 1 or table.dim() != 2 or table.stride(1) != 1 or first_id < 0:
        raise ValueError(f"expected ids [T] and table [rows, E], got {tuple(input_ids.shape)}, {tuple(table.shape)}")
    if table.device != backend.device:
        raise ValueError(f"the table is on {table.device}, the backend on {backend.device}")
    if backend.triton:
        from tokenwire_service.kernels.embed_gather import _triton

        return _triton.embed_gather(input_ids.contiguous(), table, first_id)
    # A table that holds the whole vocabulary needs no mask: ids outside of it are an error there.
    if table.shape[0] == vocab_size:
        return embedding(input_ids, table)
    return reference.embed_gather(input_ids, table, first_id)
