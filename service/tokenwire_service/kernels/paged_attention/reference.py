"""Attention over KV blocks in plain PyTorch: gathers each sequence's blocks, scores, masks, softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenwire_service.kernels.paged_attention.options import AttentionOptions


def paged_attention(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    options: AttentionOptions,
) -> Tensor:
    """Shapes as in the package's public function."""
    out = torch.empty_like(q)
    starts, lengths = query_start_loc.tolist(), seq_lens.tolist()
    for row, length in enumerate(lengths):
        tokens = slice(starts[row], starts[row + 1])
        keys = _gather(key, block_tables[row], length).to(q.dtype)
        values = _gather(value, block_tables[row], length).to(q.dtype)
        out[tokens] = _attend(q[tokens], keys, values, options)
    return out


def _gather(blocks: Tensor, table: Tensor, length: int) -> Tensor:
    """blocks [N, K, B, D], table [max blocks] → [K, length, D]."""
    num_kv_heads, block_size, head_dim = blocks.shape[1:]
    used = blocks[table[: -(-length // block_size)].long()]
    return used.transpose(0, 1).reshape(num_kv_heads, -1, head_dim)[:, :length]


def _attend(q: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
    """q [Q, H, D] are the last Q positions of keys and values [K, L, D] → [Q, H, D]."""
    queries, num_heads, head_dim = q.shape
    num_kv_heads, length, _ = keys.shape
    grouped = q.view(queries, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = torch.einsum("qkgd,kld->kgql", grouped, keys).float() * (options.scale * options.key_scale)
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    query_pos = torch.arange(length - queries, length, device=q.device)[:, None]
    key_pos = torch.arange(length, device=q.device)
    if options.alibi_slopes is not None:
        scores = scores + options.alibi_slopes.view(num_kv_heads, -1, 1, 1) * (key_pos - query_pos)
    visible = key_pos <= query_pos
    if options.window is not None:
        visible &= key_pos > query_pos - options.window
    weights = _softmax(scores.masked_fill(~visible, float("-inf")), options.sinks).to(q.dtype)
    mixed = torch.einsum("kgql,kld->qkgd", weights, values).reshape(queries, num_heads, head_dim)
    return mixed if options.value_scale == 1.0 else (mixed.float() * options.value_scale).to(q.dtype)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """scores [K, G, Q, L] → weights of the same shape; with sinks [H] a row sums to less than one."""
    if sinks is None:
        return scores.softmax(dim=-1)
    column = sinks.view(*scores.shape[:2], 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
