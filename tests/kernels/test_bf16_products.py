"""Products of bfloat16 pairs, where this processor has them: against references that round the same numbers."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.attention import Case, Heads
from tokenwire_service.kernels.backend import Backend, LinearFormat
from tokenwire_service.kernels.linear import linear, pack_weight
from tokenwire_service.kernels.paged_attention import AttentionOptions

RAGGED = ((1, 1), (5, 5), (1, 70), (70, 131), (33, 90), (1, 200), (2, 66), (40, 40))
"""(query length, sequence length)."""
ROUNDING = 2**-8
"""What rounding to bfloat16 changes a number by at most, relative to it."""


@pytest.fixture
def paired(backends: dict[str, Backend]) -> list[Backend]:
    """Backends with such products: none on an older processor."""
    return [each for each in backends.values() if each.library is not None and each.library.has_bf16_products]


def bfloat16_case(heads: Heads, head_dim: int, block_size: int, rows: tuple[tuple[int, int], ...]) -> Case:
    case = Case(heads, head_dim, block_size, rows, kv_dtype=torch.bfloat16)
    case.q = case.q.float()
    return case


def expected_and_bound(case: Case, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    """Attention with the scaled queries rounded, and what rounding the weights may change it by."""
    rounded = copy(case)
    rounded.q = (case.q * options.scale).bfloat16().double() / options.scale
    expected = rounded.expected(options)
    rounded.values = [values.abs() for values in case.values]
    return expected, 1.05 * ROUNDING * rounded.expected(options) + 1e-4


def test_the_processor_says_what_the_compiler_used(backends: dict[str, Backend]) -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    for name, backend in backends.items():
        if backend.library is not None:
            assert backend.library.has_bf16_products == (name == "native" and "avx512_bf16" in flags)


@pytest.mark.parametrize("shape", [(1, 1), (5, 31), (37, 65), (96, 64), (130, 200), (33, 577)])
@pytest.mark.parametrize("tokens", [1, 2, 7, 12, 13, 48, 49, 130])
def test_linear_layers_round_both_factors(paired: list[Backend], shape: tuple[int, int], tokens: int) -> None:
    torch.manual_seed(tokens)
    weight, x, bias = torch.randn(shape), torch.randn(tokens, shape[1]), torch.randn(shape[0])
    expected = x.bfloat16().double() @ weight.bfloat16().double().t() + bias.double()
    for backend in paired:
        packed = pack_weight(weight, replace(backend, linear_format=LinearFormat.BFLOAT16))
        torch.testing.assert_close(linear(x, packed, bias).double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("heads", "head_dim", "block_size"),
    [
        ((9, 3), 64, 32),
        ((4, 4), 80, 5),
        ((8, 1), 96, 16),
        ((14, 2), 128, 7),
        ((24, 2), 256, 16),
        ((6, 2), 20, 1),
        ((7, 1), 2, 3),
        ((6, 2), 21, 16),
    ],
)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (7, None), (100, 30.0)])
def test_attention_rounds_queries_and_weights(
    paired: list[Backend], heads: Heads, head_dim: int, block_size: int, window: int | None, softcap: float | None
) -> None:
    case = bfloat16_case(heads, head_dim, block_size, RAGGED)
    options = AttentionOptions(head_dim**-0.5, window, softcap)
    expected, bound = expected_and_bound(case, options)
    if head_dim % 2 == 1:
        # Widened, as there is no pair to multiply.
        expected, bound = case.expected(options), torch.full_like(bound, 2e-5)
    for backend in paired:
        assert ((case.run(options, backend).double() - expected).abs() <= bound).all()


def test_long_contexts_are_cut_into_spans_and_merged(paired: list[Backend]) -> None:
    case = bfloat16_case((6, 2), 64, 16, ((1, 1500), (2, 2049), (40, 900), (1, 384), (1, 385)))
    options = AttentionOptions(0.125)
    expected, bound = expected_and_bound(case, options)
    for backend in paired:
        assert ((case.run(options, backend).double() - expected).abs() <= bound).all()


def test_a_row_does_not_depend_on_its_neighbours(paired: list[Backend]) -> None:
    options = AttentionOptions(0.125)
    case = bfloat16_case((9, 3), 64, 16, ((1, 2500), (40, 40), (1, 70)))
    for backend in paired:
        together = case.run(options, backend)[:1]
        assert torch.equal(case.run_first_alone(options, backend), together)


@pytest.mark.parametrize("rows", [((1, 6),), ((30, 36),)])
def test_nan_in_a_visible_key_is_not_hidden(paired: list[Backend], rows: tuple[tuple[int, int], ...]) -> None:
    case = bfloat16_case((2, 2), 16, 4, rows)
    case.kv.key[int(case.batch.block_tables[0, 0]), 0, 1] = float("nan")
    for backend in paired:
        out = case.run(AttentionOptions(0.25), backend)
        assert out[:, 0].isnan().all()
        assert out[:, 1].isfinite().all()
