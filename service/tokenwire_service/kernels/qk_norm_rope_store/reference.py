"""Split of merged QKV, per-head norms, rotation and store into the KV blocks, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def qk_norm_rope_store(
    qkv: Tensor,
    cos_sin: Tensor | None,
    slot_mapping: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    interleaved: bool,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    key_scale: float,
    value_scale: float,
) -> Tensor:
    """Shapes as in the package's public function."""
    num_kv_heads, block_size, head_dim = key.shape[1:]
    heads = qkv.view(len(qkv), -1, head_dim)
    q, k, v = heads.split_with_sizes((num_heads, num_kv_heads, num_kv_heads), dim=1)
    q, k = _norm(q, q_norm, eps), _norm(k, k_norm, eps)
    if cos_sin is not None:
        q, k = _rotate(q, cos_sin, interleaved), _rotate(k, cos_sin, interleaved)
    live = slot_mapping != -1
    slots = slot_mapping[live]
    if ((slots < 0) | (slots >= key.shape[0] * block_size)).any():
        raise IndexError(f"a slot is outside {key.shape[0]} blocks of {block_size}")
    block, offset = slots // block_size, slots % block_size
    key[block, :, offset] = _stored(k[live], key_scale, key.dtype)
    value[block, :, offset] = _stored(v[live], value_scale, value.dtype)
    return q.contiguous()


def _stored(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """x as the blocks hold it."""
    if dtype != torch.float8_e4m3fn:
        return x.to(dtype)
    return (x.float() / scale).clamp(-448.0, 448.0).to(dtype)


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    normed = x.float() * torch.rsqrt(x.float().square().mean(dim=-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def _rotate(x: Tensor, cos_sin: Tensor, interleaved: bool) -> Tensor:
    """x [T, heads, D]; the leading cos_sin.shape[1] dimensions are rotated."""
    cos, sin = cos_sin.to(x.dtype)[:, None].chunk(2, dim=-1)
    turned, rest = x[..., : cos_sin.shape[1]], x[..., cos_sin.shape[1] :]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    pair = (a * cos - b * sin, b * cos + a * sin)
    mixed = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat((mixed, rest), dim=-1)
