"""What happens between the merged QKV projection and attention, in one pass over the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenwire_service.kernels._cpu_library import type_name
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.qk_norm_rope_store import reference


def qk_norm_rope_store(
    qkv: Tensor,
    cos_sin: Tensor | None,
    slot_mapping: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    interleaved: bool = False,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    backend: Backend,
) -> Tensor:
    """Splits qkv [T, (H + 2K) D], norms and rotates q and k, stores k and v; returns q [T, H, D].

    cos_sin float32 [T, R]: R/2 cosines then R/2 sines for the leading R dimensions of a head; None rotates nothing.
    slot_mapping int64 [T]: block_id * B + offset of each token in key and value [N, K, B, D]; -1 for a padded token, of
    which nothing is stored.
    q_norm, k_norm [D]: weights of the per-head RMSNorm with `eps` before the rotation; both or none.
    interleaved: rotate neighbours (GPT-J) instead of halves (NeoX).
    key_scale, value_scale: blocks in float8_e4m3fn hold k / key_scale and v / value_scale, at most ±448.
    Raises ValueError for other shapes or strides, IndexError for a slot outside the blocks; a GPU cannot be asked
    without waiting for it: there, nothing of such a token is stored.
    """
    _check(qkv, cos_sin, slot_mapping, key, value, num_heads)
    if (q_norm is None) != (k_norm is None):
        raise ValueError("q_norm and k_norm must both be given or both be None")
    if key.dtype != torch.float8_e4m3fn and (key_scale, value_scale) != (1.0, 1.0):
        raise ValueError(f"key_scale and value_scale are for blocks in float8_e4m3fn, these are in {key.dtype}")
    scales = (key_scale, value_scale)
    arguments = (qkv, cos_sin, slot_mapping, key, value, num_heads, interleaved, q_norm, k_norm, eps, *scales)
    if backend.triton:
        from tokenwire_service.kernels.qk_norm_rope_store import _triton

        return _triton.qk_norm_rope_store(*arguments)
    kept = type_name(key.dtype)
    if backend.library is None or kept is None:
        return reference.qk_norm_rope_store(*arguments)
    tokens, (num_blocks, num_kv_heads, block_size, head_dim) = qkv.shape[0], key.shape
    bad = backend.library.check("tw_check_slots", slot_mapping.data_ptr(), tokens, num_blocks * block_size)
    if bad >= 0:
        raise IndexError(f"slot {int(slot_mapping[bad])} of token {bad} is outside {num_blocks} blocks of {block_size}")
    q = backend.library.empty(tokens, num_heads, head_dim)
    backend.library.run(
        f"tw_qk_norm_rope_store_{kept}",
        qkv.data_ptr(),
        0 if cos_sin is None else cos_sin.data_ptr(),
        slot_mapping.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        q.data_ptr(),
        0 if q_norm is None else q_norm.data_ptr(),
        0 if k_norm is None else k_norm.data_ptr(),
        tokens,
        num_heads,
        num_kv_heads,
        head_dim,
        block_size,
        0 if cos_sin is None else cos_sin.shape[1],
        int(interleaved),
        eps,
    )
    return q


def _check(
    qkv: Tensor, cos_sin: Tensor | None, slot_mapping: Tensor, key: Tensor, value: Tensor, num_heads: int
) -> None:
    if key.dim() != 4 or key.shape != value.shape or not key.is_contiguous() or not value.is_contiguous():
        raise ValueError(f"key and value must be contiguous [N, K, B, D], got {tuple(key.shape)}, {tuple(value.shape)}")
    tokens = qkv.shape[0]
    if qkv.shape != (tokens, (num_heads + 2 * key.shape[1]) * key.shape[3]) or not qkv.is_contiguous():
        raise ValueError(f"qkv must be contiguous [T, (H + 2K) D], got {tuple(qkv.shape)}")
    if slot_mapping.shape != (tokens,) or slot_mapping.dtype != torch.int64 or not slot_mapping.is_contiguous():
        raise ValueError(f"slot_mapping must be int64 [{tokens}], got {slot_mapping.dtype} {tuple(slot_mapping.shape)}")
    if cos_sin is None:
        return
    rotary_dim = cos_sin.shape[-1]
    if cos_sin.shape != (tokens, rotary_dim) or rotary_dim % 2 or rotary_dim > key.shape[3]:
        raise ValueError(f"cos_sin must be [{tokens}, R] with R even and at most {key.shape[3]}")
    if cos_sin.dtype != torch.float32 or not cos_sin.is_contiguous():
        raise ValueError(f"cos_sin must be contiguous float32, got {cos_sin.dtype}")
