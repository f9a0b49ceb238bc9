"""Embedding lookup in one rank's part of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding

from tokenwire_service.kernels._cpu_library import CpuLibrary, check_rows
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
    if backend.library is not None and table.dtype is torch.float32:
        if table.shape[0] == vocab_size:
            check_rows(backend.library, input_ids, vocab_size)
        return look_up(input_ids, table, first_id, backend.library)
    # A table that holds the whole vocabulary needs no mask: ids outside of it are an error there.
    if table.shape[0] == vocab_size:
        return embedding(input_ids, table)
    return reference.embed_gather(input_ids, table, first_id)


def look_up(ids: Tensor, table: Tensor, first_id: int, library: CpuLibrary) -> Tensor:
    """The native kernel: ids int64 [T], table float32 [rows, E] → [T, E]; zeros outside of the table."""
    if ids.dtype is not torch.int64 or not ids.is_contiguous() or not table.is_contiguous():
        raise ValueError(f"ids must be contiguous int64, the table contiguous; got {ids.dtype}")
    (rows, width), count = table.shape, len(ids)
    out = library.empty(count, width)
    library.run("tw_embed_gather", ids.data_ptr(), table.data_ptr(), out.data_ptr(), count, first_id, rows, width)
    return out
