from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tokenwire_service.kernels.backend import Backend, LinearFormat
from tokenwire_service.kernels.linear import linear, pack_table, pack_weight, reference, rows

FORMATS = tuple(form for form in LinearFormat if form.is_native)
SHAPES = ((1, 1), (5, 31), (37, 65), (96, 64), (130, 200))


def native(backends: dict[str, Backend], form: LinearFormat) -> list[Backend]:
    return [replace(backend, linear_format=form) for backend in backends.values() if backend.library is not None]


def held(weight: Tensor, form: LinearFormat) -> Tensor:
    """The numbers a weight stands for once it is packed."""
    if form is LinearFormat.INT8:
        return reference.round_int8(weight)
    return weight.to(getattr(torch, form.value)).float()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 2, 7, 13, 64])
def test_products(backends: dict[str, Backend], form: LinearFormat, shape: tuple[int, int], tokens: int) -> None:
    torch.manual_seed(tokens)
    weight, x, bias = torch.randn(shape), torch.randn(tokens, shape[1]), torch.randn(shape[0])
    for backend in native(backends, form):
        taken = x.bfloat16() if form is LinearFormat.BFLOAT16 and backend.library.has_bf16_products else x
        expected = taken.double() @ held(weight, form).double().t() + bias.double()
        if form is LinearFormat.INT8:
            expected = reference.linear_int8(x, weight, bias).double()
        out = linear(x, pack_weight(weight, backend), bias)
        # A number of x halfway between two 8-bit values may be rounded either way.
        tolerance = 2e-2 if form is LinearFormat.INT8 else 1e-4
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_is_the_same_alone_and_in_a_batch(backends: dict[str, Backend], form: LinearFormat) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(150, 77), torch.randn(200, 77)
    for backend in native(backends, form):
        packed = pack_weight(weight, backend)
        together = linear(x, packed, None)
        for first, end in ((0, 1), (3, 5), (10, 23), (100, 200)):
            assert torch.equal(linear(x[first:end], packed, None), together[first:end])


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_a_packed_weight(backends: dict[str, Backend], form: LinearFormat) -> None:
    torch.manual_seed(0)
    weight, ids = torch.randn(70, 45), torch.tensor([0, 69, 33, 5, 70, -1])
    expected = torch.cat((held(weight, form)[ids[:4]], torch.zeros(2, 45)))
    for backend in native(backends, form):
        table = pack_table(weight, backend)
        torch.testing.assert_close(rows(ids, table, 0, 99), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(rows(ids + 10, table, 10, 90), expected, atol=1e-6, rtol=1e-6)
        with pytest.raises(IndexError):
            rows(ids, table, 0, 70)


def test_eight_bits_hold_what_eight_bits_gave(backends: dict[str, Backend]) -> None:
    """Blocks of a Q8_0 file, dequantized and packed again, are the same numbers."""
    torch.manual_seed(0)
    weight = reference.round_int8(torch.randn(40, 96))
    for backend in native(backends, LinearFormat.INT8):
        assert torch.equal(rows(torch.arange(40), pack_table(weight, backend), 0, 40), weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_shows(backends: dict[str, Backend], bad: float) -> None:
    x = torch.ones(3, 64)
    x[1, 40] = bad
    for form in FORMATS:
        for backend in native(backends, form):
            out = linear(x, pack_weight(torch.ones(5, 64), backend), None)
            assert not out[1].isfinite().any()
            assert out[[0, 2]].isfinite().all()


def test_a_weight_beyond_float16_is_held_in_float32(backends: dict[str, Backend]) -> None:
    weight = torch.tensor([[1.0, 70_000.0]])
    for backend in native(backends, LinearFormat.FLOAT16):
        packed = pack_weight(weight, backend)
        assert packed.format is LinearFormat.FLOAT32
        assert linear(torch.ones(1, 2), packed, None).item() == 70_001.0


@pytest.mark.parametrize(
    ("form", "dtype"), [(LinearFormat.FLOAT16, torch.float16), (LinearFormat.BFLOAT16, torch.bfloat16)]
)
def test_every_16_bit_number_is_read_as_torch_reads_it(
    backends: dict[str, Backend], form: LinearFormat, dtype: torch.dtype
) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    finite = numbers[numbers.isfinite()].view(-1, 16)
    between = torch.nextafter(finite, torch.tensor(float("inf"))) if dtype is torch.bfloat16 else finite * 1.0004
    for backend in native(backends, form):
        for values in (finite, between.clamp(-65504, 65504)):
            table = pack_table(values.contiguous(), backend)
            assert torch.equal(rows(torch.arange(len(values)), table, 0, len(values)), values.to(dtype).float())
