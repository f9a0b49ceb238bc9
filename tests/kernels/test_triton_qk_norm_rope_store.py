"""The Triton kernel between QKV projection and attention, under the interpreter, against its reference in float32."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.support.poison import Poisoned, poisoned
from tests.support.triton_device import TRITON
from tokenwire_service.kernels.backend import Backend, reference_backend
from tokenwire_service.kernels.qk_norm_rope_store import qk_norm_rope_store

BLOCK_SIZE, NUM_BLOCKS, TOKENS = 5, 4, 3
PADDED = -1

REFERENCE = reference_backend()
BACKENDS = {"reference": REFERENCE, "triton": TRITON}

pytestmark = pytest.mark.usefixtures("exact_bf16")


@dataclass(frozen=True)
class Case:
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 16
    rotary_dim: int = 16
    interleaved: bool = False
    normed: bool = False

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor | None]:
        torch.manual_seed(self.head_dim + self.num_heads)
        turns = torch.rand(TOKENS, self.rotary_dim // 2) * 6
        weights = [torch.randn(self.head_dim).to(dtype) if self.normed else None for _ in range(2)]
        return {
            "qkv": torch.randn(TOKENS, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim).to(dtype),
            "cos_sin": torch.cat((turns.cos(), turns.sin()), dim=-1) if self.rotary_dim else None,
            "slot_mapping": torch.tensor([17, PADDED, 3]),
            "q_norm": weights[0],
            "k_norm": weights[1],
        }

    def blocks(self, dtype: torch.dtype) -> Poisoned:
        shape = (NUM_BLOCKS, self.num_kv_heads, BLOCK_SIZE, self.head_dim)
        return Poisoned(torch.full(shape, float("nan")).to(dtype))

    def run(
        self,
        inputs: dict[str, Tensor | None],
        kv_dtype: torch.dtype,
        backend: Backend,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, H, D], key and value [N, K, B, D], of inputs in poisoned memory."""
        key, value = self.blocks(kv_dtype), self.blocks(kv_dtype)
        around = {name: None if tensor is None else tensor.clone() for name, tensor in inputs.items()}
        for name, tensor in around.items():
            if tensor is not None and tensor.is_floating_point():
                around[name] = poisoned(tensor)
        q = qk_norm_rope_store(
            **around,  # type: ignore[arg-type]
            key=key.tensor,
            value=value.tensor,
            num_heads=self.num_heads,
            interleaved=self.interleaved,
            eps=1e-5,
            key_scale=key_scale,
            value_scale=value_scale,
            backend=backend,
        )
        key.check()
        value.check()
        return q, key.tensor, value.tensor


def in_float32(inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {
        name: tensor.float() if tensor is not None and tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }


CASES = {
    "all": Case(),
    "part": Case(head_dim=80, rotary_dim=32),
    "odd_part": Case(head_dim=24, rotary_dim=10),
    "none": Case(rotary_dim=0),
    "multi_query": Case(num_heads=5, num_kv_heads=1, head_dim=96, rotary_dim=96),
    "many_heads": Case(num_heads=70, num_kv_heads=67, head_dim=16, rotary_dim=4),
    "wide": Case(num_heads=2, num_kv_heads=1, head_dim=256, rotary_dim=256),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_against_the_reference(case: Case, interleaved: bool, normed: bool, dtype: torch.dtype) -> None:
    case = Case(case.num_heads, case.num_kv_heads, case.head_dim, case.rotary_dim, interleaved, normed)
    inputs = case.inputs(dtype)
    expected = case.run(in_float32(inputs), torch.float32, REFERENCE)
    half_ulp = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    for ours, theirs in zip(case.run(inputs, dtype, TRITON), expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), theirs, atol=1e-5, rtol=1e-5 + half_ulp, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_nothing_of_a_padded_token_is_stored(backend: Backend) -> None:
    case = CASES["all"]
    q, key, value = case.run(case.inputs(torch.float32), torch.float32, backend)
    live = TOKENS - 1
    for blocks in (key, value):
        assert blocks.isfinite().all(dim=-1).sum() == live * case.num_kv_heads
        assert blocks[3, :, 2].isfinite().all()
        assert blocks[0, :, 3].isfinite().all()
    assert q.isfinite().all()


def test_nothing_of_a_slot_outside_the_blocks_is_stored() -> None:
    case = CASES["all"]
    inputs = case.inputs(torch.float32)
    for slots in ([NUM_BLOCKS * BLOCK_SIZE, -2, 2**40], [-(2**40), -(2**31), 2**31]):
        q, key, value = case.run(inputs | {"slot_mapping": torch.tensor(slots)}, torch.float32, TRITON)
        assert key.isnan().all()
        assert value.isnan().all()
        assert q.isfinite().all()
    with pytest.raises(IndexError, match="slot"):
        case.run(inputs | {"slot_mapping": torch.tensor([0, -2, 1])}, torch.float32, REFERENCE)


@pytest.mark.parametrize("normed", [False, True])
def test_a_token_does_not_depend_on_its_batch(normed: bool) -> None:
    case = Case(head_dim=64, rotary_dim=48, normed=normed)
    inputs = case.inputs(torch.float32)
    together = case.run(inputs, torch.float32, TRITON)
    for token in (0, 2):
        one = {
            name: tensor[token : token + 1] if tensor is not None and name not in {"q_norm", "k_norm"} else tensor
            for name, tensor in inputs.items()
        }
        alone = case.run(one, torch.float32, TRITON)
        assert torch.equal(alone[0][0], together[0][token])
        slot = int(inputs["slot_mapping"][token])  # type: ignore[index]
        at = (slot // BLOCK_SIZE, slice(None), slot % BLOCK_SIZE)
        assert torch.equal(alone[1][at], together[1][at])
        assert torch.equal(alone[2][at], together[2][at])


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.float32], ids=str)
def test_blocks_of_another_type_than_the_activations(kv_dtype: torch.dtype) -> None:
    case = CASES["part"]
    inputs = case.inputs(torch.float16)
    expected = case.run(in_float32(inputs), torch.float32, REFERENCE)
    q, key, value = case.run(inputs, kv_dtype, TRITON)
    assert q.dtype == torch.float16
    assert key.dtype == value.dtype == kv_dtype
    for ours, theirs in ((key, expected[1]), (value, expected[2])):
        torch.testing.assert_close(ours.float(), theirs, atol=1e-5, rtol=2**-10, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_float8_blocks_hold_scaled_values_within_their_range(backend: Backend, dtype: torch.dtype) -> None:
    case = Case(rotary_dim=0)
    inputs = case.inputs(dtype)
    torch.manual_seed(0)
    qkv = (torch.randn(TOKENS, 10 * 16) * 10 ** torch.randint(-3, 5, (TOKENS, 10 * 16))).to(dtype).float()
    qkv[0, ::7] = float("nan")
    q, key, value = case.run(
        inputs | {"qkv": qkv.to(dtype)}, torch.float8_e4m3fn, backend, key_scale=2.0, value_scale=0.5
    )
    heads = qkv.view(TOKENS, 10, 16)
    torch.testing.assert_close(q.float(), heads[:, :6], equal_nan=True)
    for token, slot in ((0, 17), (2, 3)):
        at = (slot // BLOCK_SIZE, slice(None), slot % BLOCK_SIZE)
        k, v = (heads[token, 6:8] / 2).clamp(-448, 448), (heads[token, 8:] * 2).clamp(-448, 448)
        for ours, expected in ((key[at], k), (value[at], v)):
            exact = expected.to(torch.float8_e4m3fn).float()
            torch.testing.assert_close(ours.float(), exact, atol=0, rtol=0, equal_nan=True)


def test_scales_are_for_float8_blocks() -> None:
    case = CASES["all"]
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        case.run(case.inputs(torch.float32), torch.float32, REFERENCE, key_scale=2.0)


def test_no_tokens() -> None:
    case = CASES["all"]
    none = {name: None if tensor is None else tensor[:0] for name, tensor in case.inputs(torch.float32).items()}
    q, key, _ = case.run(none, torch.float32, TRITON)
    assert q.shape == (0, 6, 16)
    assert key.isnan().all()
