"""Causal attention of a flat batch over KV blocks: prefill, chunk, decode and verification are one operation."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenwire_service.kernels._cpu_library import type_name
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.paged_attention import reference
from tokenwire_service.kernels.paged_attention.options import AttentionOptions

__all__ = ["AttentionOptions", "paged_attention"]


def paged_attention(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    *,
    options: AttentionOptions,
    backend: Backend,
) -> Tensor:
    """q [T, H, D] over key and value [N, K, B, D] → [T, H, D]; H is a multiple of K (MHA, GQA, MQA).

    query_start_loc int32 [S + 1], seq_lens int32 [S] (the queries included), block_tables int32 [S, max blocks]: the
    queries of row s are the last positions of its sequence, whose keys and values are stored already. Slots past a
    sequence's length and table entries past its blocks are never read. Tokens past the last query may be anything.
    Raises ValueError for other shapes, strides, types or options, IndexError for a block id outside [0, N); a GPU
    cannot be asked without waiting for it: there, ids are trusted.
    """
    _check(q, key, value, query_start_loc, seq_lens, block_tables)
    _check_options(q, key, options)
    if backend.triton:
        from tokenwire_service.kernels.paged_attention import _triton

        return _triton.paged_attention(q, key, value, query_start_loc, seq_lens, block_tables, options)
    kept = type_name(key.dtype)
    if backend.library is None or kept is None or not options.plain:
        return reference.paged_attention(q, key, value, query_start_loc, seq_lens, block_tables, options)
    num_blocks, num_kv_heads, block_size, head_dim = key.shape
    tokens, num_sequences, max_blocks = q.shape[0], seq_lens.shape[0], block_tables.shape[1]
    bad = backend.library.check(
        "tw_check_batch",
        query_start_loc.data_ptr(),
        seq_lens.data_ptr(),
        block_tables.data_ptr(),
        tokens,
        num_sequences,
        num_blocks,
        block_size,
        max_blocks,
    )
    if bad >= 0:
        raise IndexError(f"row {bad} of the batch: its lengths or block ids do not fit the tensors")
    out = backend.library.empty(*q.shape)
    backend.library.run(
        f"tw_paged_attention_{kept}",
        q.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        query_start_loc.data_ptr(),
        seq_lens.data_ptr(),
        block_tables.data_ptr(),
        out.data_ptr(),
        tokens,
        num_sequences,
        q.shape[1],
        num_kv_heads,
        head_dim,
        block_size,
        max_blocks,
        options.window or 0,
        options.scale,
        options.softcap or 0.0,
    )
    return out


def _check(
    q: Tensor, key: Tensor, value: Tensor, query_start_loc: Tensor, seq_lens: Tensor, block_tables: Tensor
) -> None:
    if key.dim() != 4 or key.shape != value.shape or not key.is_contiguous() or not value.is_contiguous():
        raise ValueError(f"key and value must be contiguous [N, K, B, D], got {tuple(key.shape)}, {tuple(value.shape)}")
    if q.dim() != 3 or q.shape[2] != key.shape[3] or q.shape[1] % key.shape[1] or not q.is_contiguous():
        raise ValueError(f"q must be contiguous [T, H, D] for key {tuple(key.shape)}, got {tuple(q.shape)}")
    rows = seq_lens.shape[0]
    if query_start_loc.shape != (rows + 1,) or block_tables.dim() != 2 or block_tables.shape[0] != rows:
        raise ValueError("query_start_loc must be [S + 1], seq_lens [S] and block_tables [S, max blocks]")
    for tensor in (query_start_loc, seq_lens, block_tables):
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError("query_start_loc, seq_lens and block_tables must be contiguous int32")


def _check_options(q: Tensor, key: Tensor, options: AttentionOptions) -> None:
    if not options.scale > 0 or (options.softcap is not None and not options.softcap > 0):
        raise ValueError(f"scale and softcap must be positive, got {options.scale}, {options.softcap}")
    if options.window is not None and options.window < 1:
        raise ValueError(f"window must be at least 1 token, the query's own, got {options.window}")
    if key.dtype != torch.float8_e4m3fn and (options.key_scale, options.value_scale) != (1.0, 1.0):
        raise ValueError(f"key_scale and value_scale are for blocks in float8_e4m3fn, these are in {key.dtype}")
    for name, tensor in (("alibi_slopes", options.alibi_slopes), ("sinks", options.sinks)):
        if tensor is None:
            continue
        if tensor.shape != q.shape[1:2] or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous float32 [{q.shape[1]}], got {tensor.dtype} {tensor.shape}")
