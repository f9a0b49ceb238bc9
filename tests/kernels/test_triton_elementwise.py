"""Triton kernels that work row by row, under the interpreter, against their references in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.support.poison import Poisoned, poisoned
from tests.support.triton_device import TRITON
from tokenwire_service.kernels.add_layer_norm import add_layer_norm
from tokenwire_service.kernels.add_rms_norm import add_rms_norm
from tokenwire_service.kernels.backend import Backend, reference_backend
from tokenwire_service.kernels.embed_gather import embed_gather
from tokenwire_service.kernels.gather_rows import gather_rows
from tokenwire_service.kernels.gelu_mul import gelu_mul
from tokenwire_service.kernels.silu_mul import silu_mul

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

pytestmark = pytest.mark.usefixtures("exact_bf16")


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def close(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """expected float32; ours is it, rounded once."""
    assert ours.dtype == dtype
    half_ulp = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(ours.float(), expected, atol=1e-5, rtol=1e-5 + half_ulp)


Norm = Callable[[Tensor, Tensor | None, Tensor, Backend], Tensor]


def rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, backend: Backend) -> Tensor:
    return add_rms_norm(residual, delta, weight, 1e-5, backend)


def layer_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, backend: Backend) -> Tensor:
    return add_layer_norm(residual, delta, weight, None, 1e-5, backend)


def biased_layer_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, backend: Backend) -> Tensor:
    return add_layer_norm(residual, delta, weight, weight.flip(0), 1e-5, backend)


NORMS = (rms_norm, layer_norm, biased_layer_norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize(("tokens", "width"), [(0, 8), (1, 1), (3, 37), (2, 576), (5, 128), (1, 2049)])
def test_norms(norm: Norm, dtype: torch.dtype, adds: bool, tokens: int, width: int) -> None:
    torch.manual_seed(width)
    residual, delta = torch.randn(2, tokens, width).to(dtype)
    # A mean far from zero: a variance as E[x²] - E[x]² would lose its digits.
    residual += 30
    weight = torch.randn(width).to(dtype)
    stream = residual + delta if adds else residual
    expected = norm(stream.float(), None, weight.float(), reference_backend())
    ours = Poisoned(residual)
    out = norm(ours.tensor, poisoned(delta) if adds else None, poisoned(weight), TRITON)
    close(out, expected, dtype)
    assert torch.equal(ours.tensor, stream)
    ours.check()


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_of_a_row_does_not_depend_on_its_batch(norm: Norm) -> None:
    torch.manual_seed(0)
    residual, delta, weight = torch.randn(3, 300), torch.randn(3, 300), torch.randn(300)
    together = norm(residual.clone(), delta, weight, TRITON)
    alone = [norm(residual[row : row + 1].clone(), delta[row : row + 1], weight, TRITON) for row in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_layer_norm_against_its_formula() -> None:
    torch.manual_seed(0)
    residual, delta, weight, bias = torch.randn(3, 37), torch.randn(3, 37), torch.randn(37), torch.randn(37)
    x = (residual + delta).double()
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight + bias
    for backend in (reference_backend(), TRITON):
        ours = residual.clone()
        out = add_layer_norm(ours, delta, weight, bias, 1e-3, backend)
        torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.double(), x)


def test_layer_norm_refuses_other_layouts() -> None:
    x, weight = torch.zeros(4, 6), torch.ones(6)
    with pytest.raises(ValueError, match="residual"):
        add_layer_norm(x.t(), None, torch.ones(4), None, 1e-5, reference_backend())
    with pytest.raises(ValueError, match="delta"):
        add_layer_norm(x, torch.zeros(4, 12)[:, ::2], weight, None, 1e-5, reference_backend())
    with pytest.raises(ValueError, match="bias"):
        add_layer_norm(x, None, weight, torch.ones(5), 1e-5, reference_backend())


Activation = Callable[[Tensor, Backend], Tensor]


def gelu_by_tanh(gate_up: Tensor, backend: Backend) -> Tensor:
    return gelu_mul(gate_up, True, backend)


def gelu_by_erf(gate_up: Tensor, backend: Backend) -> Tensor:
    return gelu_mul(gate_up, False, backend)


ACTIVATIONS = (silu_mul, gelu_by_tanh, gelu_by_erf)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(0, 3), (1, 1), (3, 37), (2, 1024), (1, 1027)])
def test_gated_activations(activation: Activation, dtype: torch.dtype, tokens: int, width: int) -> None:
    torch.manual_seed(width)
    gate_up = (torch.randn(tokens, 2 * width) * 3).to(dtype)
    expected = activation(gate_up.float(), reference_backend())
    close(activation(poisoned(gate_up), TRITON), expected, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_activations_at_the_ends_of_the_range(activation: Activation) -> None:
    gate = torch.tensor([[-1e4, -100.0, -88.0, -6.0, -1.0, -0.0, 1.0, 6.0, 88.0, 100.0, 1e4, float("nan")]])
    gate_up = torch.cat((gate, torch.ones_like(gate)), dim=-1)
    expected = activation(gate_up, reference_backend())
    torch.testing.assert_close(activation(gate_up, TRITON), expected, atol=1e-6, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("tanh", "name"), [(True, "gelu_pytorch_tanh"), (False, "gelu")])
def test_gelu_is_what_checkpoints_call_it(tanh: bool, name: str) -> None:
    from transformers.activations import ACT2FN

    torch.manual_seed(0)
    gate, up = torch.randn(2, 3, 50) * 3
    expected = ACT2FN[name](gate) * up
    for backend in (reference_backend(), TRITON):
        out = gelu_mul(torch.cat((gate, up), dim=-1), tanh, backend)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


def test_gelu_refuses_other_layouts() -> None:
    for wrong in (torch.zeros(4, 7), torch.zeros(4, 8).t()[:, :3], torch.zeros(8)):
        with pytest.raises(ValueError, match="gate_up"):
            gelu_mul(wrong, True, reference_backend())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("width", [1, 37, 1027])
def test_embedding_of_a_part_of_the_vocabulary(dtype: torch.dtype, id_dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    table = torch.randn(10, width).to(dtype)
    ids = torch.tensor([0, 9, 4, 5, 3], dtype=id_dtype)
    assert torch.equal(embed_gather(ids, poisoned(table), 0, 10, TRITON), table[ids.long()])
    parts = [embed_gather(ids, poisoned(table[first : first + 5]), first, 10, TRITON) for first in (0, 5)]
    assert torch.equal(parts[0] + parts[1], table[ids.long()])
    assert not parts[0][1].any()
    assert not parts[1][0].any()


def test_embedding_of_ids_outside_the_vocabulary_is_zero() -> None:
    ids = torch.tensor([-1, 10, 2**31 - 1, -(2**31)])
    assert not embed_gather(ids, poisoned(torch.ones(10, 3)), 0, 10, TRITON).any()
    assert embed_gather(ids[:0], torch.ones(10, 3), 0, 10, TRITON).shape == (0, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 37, 1027])
def test_gather_rows(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, width).to(dtype)
    rows = torch.tensor([4, 0, 4])
    assert torch.equal(gather_rows(poisoned(x), rows, TRITON), x[rows])
    assert torch.equal(gather_rows(poisoned(x), rows[:0], TRITON), x[:0])
    outside = gather_rows(poisoned(x), torch.tensor([5, 2, -1]), TRITON)
    assert torch.equal(outside, torch.stack((torch.zeros_like(x[0]), x[2], torch.zeros_like(x[0]))))
