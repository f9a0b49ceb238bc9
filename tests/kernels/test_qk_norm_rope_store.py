from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.paged import poisoned_blocks
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.qk_norm_rope_store import qk_norm_rope_store
from tokenwire_service.layers.batch import LayerKV

NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE, NUM_BLOCKS = 6, 2, 5, 9


def angles(tokens: int, rotary_dim: int) -> Tensor:
    turns = torch.rand(tokens, rotary_dim // 2) * 6
    return torch.cat((turns.cos(), turns.sin()), dim=-1)


def rotate_one(x: Tensor, cos_sin: Tensor, interleaved: bool) -> Tensor:
    """x [D] by complex multiplication, pair by pair."""
    half = len(cos_sin) // 2
    out = x.clone()
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        turned = complex(x[a], x[b]) * complex(cos_sin[i], cos_sin[half + i])
        out[a], out[b] = turned.real, turned.imag
    return out


def norm_one(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else x / (x.square().mean() + eps).sqrt() * weight


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96])
@pytest.mark.parametrize("rotary", ["all", "part", "none"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_against_a_head_at_a_time(
    backends: dict[str, Backend], head_dim: int, rotary: str, interleaved: bool, normed: bool
) -> None:
    torch.manual_seed(0)
    tokens, eps = 7, 1e-5
    qkv = torch.randn(tokens, (NUM_HEADS + 2 * NUM_KV_HEADS) * head_dim)
    rotary_dim = {"all": head_dim, "part": head_dim // 2 - 2, "none": 0}[rotary]
    cos_sin = angles(tokens, rotary_dim) if rotary_dim else None
    q_norm, k_norm = (torch.randn(head_dim), torch.randn(head_dim)) if normed else (None, None)
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:tokens]
    for backend in backends.values():
        kv = poisoned_blocks(NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, head_dim)
        q = qk_norm_rope_store(
            qkv,
            cos_sin,
            slots,
            kv.key,
            kv.value,
            num_heads=NUM_HEADS,
            interleaved=interleaved,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=eps,
            backend=backend,
        )
        heads = qkv.view(tokens, -1, head_dim)
        for token, slot in enumerate(slots.tolist()):
            turn = cos_sin[token] if cos_sin is not None else torch.empty(0)
            for h in range(NUM_HEADS):
                expected = rotate_one(norm_one(heads[token, h], q_norm, eps), turn, interleaved)
                torch.testing.assert_close(q[token, h], expected, atol=1e-5, rtol=1e-5)
            for h in range(NUM_KV_HEADS):
                at = (slot // BLOCK_SIZE, h, slot % BLOCK_SIZE)
                expected = rotate_one(norm_one(heads[token, NUM_HEADS + h], k_norm, eps), turn, interleaved)
                torch.testing.assert_close(kv.key[at], expected, atol=1e-5, rtol=1e-5)
                assert torch.equal(kv.value[at], heads[token, NUM_HEADS + NUM_KV_HEADS + h])
        written = kv.key.isfinite().all(dim=-1).sum()
        assert written == tokens * NUM_KV_HEADS, "slots of other tokens must stay untouched"
        assert kv.value.isfinite().all(dim=-1).sum() == written


def test_many_tokens_match_the_reference(backends: dict[str, Backend]) -> None:
    torch.manual_seed(0)
    tokens, head_dim, num_blocks = 150, 64, 40
    qkv = torch.randn(tokens, (NUM_HEADS + 2 * NUM_KV_HEADS) * head_dim)
    cos_sin, slots = angles(tokens, head_dim), torch.randperm(num_blocks * BLOCK_SIZE)[:tokens]
    results = []
    for backend in backends.values():
        kv = poisoned_blocks(num_blocks, NUM_KV_HEADS, BLOCK_SIZE, head_dim)
        q = qk_norm_rope_store(qkv, cos_sin, slots, kv.key, kv.value, num_heads=NUM_HEADS, backend=backend)
        results.append((q, kv.key, kv.value))
    for result in results:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-5, equal_nan=True)


def test_a_slot_outside_the_blocks_is_refused(backends: dict[str, Backend]) -> None:
    slot = NUM_BLOCKS * BLOCK_SIZE
    qkv = torch.randn(2, (NUM_HEADS + 2 * NUM_KV_HEADS) * 16)
    for backend in backends.values():
        kv = poisoned_blocks(NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, 16)
        with pytest.raises(IndexError):
            qk_norm_rope_store(
                qkv, None, torch.tensor([0, slot]), kv.key, kv.value, num_heads=NUM_HEADS, backend=backend
            )


def test_wrong_layouts_are_refused(backends: dict[str, Backend]) -> None:
    backend = backends["reference"]
    kv = poisoned_blocks(NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, 16)
    qkv, slots = torch.randn(2, (NUM_HEADS + 2 * NUM_KV_HEADS) * 16), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="qkv"):
        qk_norm_rope_store(qkv[:, :-1], None, slots, kv.key, kv.value, num_heads=NUM_HEADS, backend=backend)
    with pytest.raises(ValueError, match="slot_mapping"):
        qk_norm_rope_store(qkv, None, slots.int(), kv.key, kv.value, num_heads=NUM_HEADS, backend=backend)
    with pytest.raises(ValueError, match="cos_sin"):
        qk_norm_rope_store(qkv, angles(2, 18), slots, kv.key, kv.value, num_heads=NUM_HEADS, backend=backend)
    with pytest.raises(ValueError, match="both"):
        qk_norm_rope_store(
            qkv, None, slots, kv.key, kv.value, num_heads=NUM_HEADS, q_norm=torch.ones(16), backend=backend
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_blocks_hold_rounded_numbers(backends: dict[str, Backend], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tokens, head_dim = 9, 24
    qkv, cos_sin = torch.randn(tokens, (NUM_HEADS + 2 * NUM_KV_HEADS) * head_dim), angles(tokens, head_dim)
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:tokens]
    for backend in backends.values():
        wide = poisoned_blocks(NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, head_dim)
        narrow = LayerKV(wide.key.to(dtype), wide.value.to(dtype))
        q = [
            qk_norm_rope_store(qkv, cos_sin, slots, kv.key, kv.value, num_heads=NUM_HEADS, backend=backend)
            for kv in (wide, narrow)
        ]
        assert torch.equal(*q)
        assert torch.equal(narrow.key.nan_to_num(-1), wide.key.to(dtype).nan_to_num(-1))
        assert torch.equal(narrow.value.nan_to_num(-1), wide.value.to(dtype).nan_to_num(-1))


def test_padding_is_stored_nowhere(backends: dict[str, Backend]) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, (NUM_HEADS + 2 * NUM_KV_HEADS) * 16)
    for backend in backends.values():
        kv = poisoned_blocks(NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, 16)
        slots = torch.tensor([-1, 4, -1])
        qk_norm_rope_store(qkv, None, slots, kv.key, kv.value, num_heads=NUM_HEADS, backend=backend)
        assert int(kv.key.isfinite().sum()) == NUM_KV_HEADS * 16
        slots[0] = -2
        with pytest.raises(IndexError):
            qk_norm_rope_store(qkv, None, slots, kv.key, kv.value, num_heads=NUM_HEADS, backend=backend)
