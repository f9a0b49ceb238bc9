"""The patched interpreter does with bfloat16 and float8 what a GPU does."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def arithmetic_kernel(a, b, total, product, is_less, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x, y = tl.load(a + at), tl.load(b + at)
    tl.store(total + at, x + y)
    tl.store(product + at, x * y)
    tl.store(is_less + at, x < y)


@triton.jit
def cast_kernel(a, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(a + at).to(out.dtype.element_ty))


@triton.jit
def dot_kernel(a, b, out, SIZE: tl.constexpr):
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    at = row * SIZE + column
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def wide(size: int) -> Tensor:
    """Values of every magnitude, halfway cases, both zeros and subnormals among them."""
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (size,)).int()
    bits[: size // 4] = (bits[: size // 4] & ~0xFFFF) | 0x8000
    values = bits.view(torch.float32)
    values = torch.where(values.isfinite(), values, 1.0)
    values[-4:] = torch.tensor([0.0, -0.0, 1e-40, -1e-40])
    return values


@pytest.fixture(autouse=True)
def patched(exact_bf16: None) -> None:
    """All of it is about the patch."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_casts_round_to_nearest_even(dtype: torch.dtype) -> None:
    x = wide(4096)
    x = x.clamp(-448, 448) if dtype == torch.float8_e4m3fn else x
    out = torch.empty(4096, dtype=dtype)
    cast_kernel[(1,)](x, out, 4096)
    assert torch.equal(out.float(), x.to(dtype).float())
    back = torch.empty(4096)
    cast_kernel[(1,)](out, back, 4096)
    assert torch.equal(back, out.float())


def test_float8_saturates_and_keeps_nan() -> None:
    out = torch.empty(4, dtype=torch.float8_e4m3fn)
    cast_kernel[(1,)](torch.tensor([1e4, -1e4, float("nan"), 465.0]), out, 4)
    assert out.float()[[0, 1, 3]].tolist() == [448.0, -448.0, 448.0]
    assert out.float()[2].isnan()


def test_arithmetic_is_rounded_once() -> None:
    torch.manual_seed(1)
    a, b = torch.randn(2, 4096).bfloat16()
    total, product, is_less = torch.empty_like(a), torch.empty_like(a), torch.empty(4096, dtype=torch.bool)
    arithmetic_kernel[(1,)](a, b, total, product, is_less, 4096)
    assert torch.equal(total, a + b)
    assert torch.equal(product, a * b)
    assert torch.equal(is_less, a < b)


def test_dot_accumulates_in_float32() -> None:
    torch.manual_seed(2)
    a, b = torch.randn(2, 32, 32).bfloat16()
    out = torch.empty(32, 32)
    dot_kernel[(1,)](a, b, out, 32)
    torch.testing.assert_close(out, a.float() @ b.float(), atol=1e-5, rtol=1e-5)
