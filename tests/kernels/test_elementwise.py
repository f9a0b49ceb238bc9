from __future__ import annotations

import pytest
import torch

from tokenwire_service.kernels.add_rms_norm import add_rms_norm
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.embed_gather import embed_gather
from tokenwire_service.kernels.gather_rows import gather_rows
from tokenwire_service.kernels.linear import linear, pack_weight
from tokenwire_service.kernels.silu_mul import silu_mul

TOKENS = (1, 3, 33, 200)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("width", [1, 37, 576, 1536])
@pytest.mark.parametrize("adds", [True, False])
def test_add_rms_norm(backends: dict[str, Backend], tokens: int, width: int, adds: bool) -> None:
    torch.manual_seed(0)
    residual, delta, weight = torch.randn(tokens, width), torch.randn(tokens, width), torch.randn(width)
    stream = (residual + delta).double() if adds else residual.double()
    expected = stream / (stream.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    for backend in backends.values():
        ours = residual.clone()
        out = add_rms_norm(ours, delta if adds else None, weight, 1e-5, backend)
        torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.double(), stream, atol=1e-6, rtol=1e-6)


def test_add_rms_norm_refuses_other_layouts(backends: dict[str, Backend]) -> None:
    x, weight = torch.zeros(4, 6), torch.ones(6)
    with pytest.raises(ValueError, match="residual"):
        add_rms_norm(x.t(), None, torch.ones(4), 1e-5, backends["reference"])
    with pytest.raises(ValueError, match="delta"):
        add_rms_norm(x, torch.zeros(4, 12)[:, ::2], weight, 1e-5, backends["reference"])


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("width", [1, 37, 1536])
def test_silu_mul(backends: dict[str, Backend], tokens: int, width: int) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(tokens, 2 * width) * 4
    gate, up = gate_up.double().chunk(2, dim=-1)
    for backend in backends.values():
        out = silu_mul(gate_up, backend)
        torch.testing.assert_close(out.double(), gate * gate.sigmoid() * up, atol=1e-5, rtol=1e-5)


def test_silu_mul_at_the_ends_of_the_range(backends: dict[str, Backend]) -> None:
    gate = torch.tensor([[-1e4, -100.0, -88.0, -1.0, 0.0, 1.0, 88.0, 100.0, 1e4, float("nan")]])
    expected = gate * gate.sigmoid()
    for backend in backends.values():
        out = silu_mul(torch.cat((gate, torch.ones_like(gate)), dim=-1), backend)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear(backends: dict[str, Backend], tokens: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(37, 65), torch.randn(tokens, 65)
    bias = torch.randn(37) if has_bias else None
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    for backend in backends.values():
        packed = pack_weight(weight, backend)
        torch.testing.assert_close(linear(x, packed, bias).double(), expected, atol=1e-4, rtol=1e-5)
        with pytest.raises(ValueError, match="65"):
            linear(x[:, :64], packed, bias)


def test_embedding_of_a_part_of_the_vocabulary(backends: dict[str, Backend]) -> None:
    torch.manual_seed(0)
    table, ids = torch.randn(10, 4), torch.tensor([0, 9, 4, 5, 3])
    for backend in backends.values():
        assert torch.equal(embed_gather(ids, table, 0, 10, backend), table[ids])
        parts = [embed_gather(ids, table[first : first + 5], first, 10, backend) for first in (0, 5)]
        assert torch.equal(parts[0] + parts[1], table[ids])


def test_gather_rows(backends: dict[str, Backend]) -> None:
    x = torch.randn(5, 3)
    for backend in backends.values():
        assert torch.equal(gather_rows(x, torch.tensor([4, 0, 4]), backend), x[[4, 0, 4]])
        with pytest.raises(IndexError):
            gather_rows(x, torch.tensor([5]), backend)
