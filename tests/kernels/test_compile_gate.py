"""Every Triton variant in use compiles for sm_90, fits its shared memory, keeps its values in registers."""

from __future__ import annotations

import pytest

from tests.support.triton_gate import SHARED_MEMORY_LIMIT, Measured, Variant, measure_variants, variants_by_name

VARIANTS = variants_by_name()


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    return measure_variants()


@pytest.mark.parametrize("name", list(VARIANTS))
def test_variant(measured: dict[str, Measured], name: str) -> None:
    variant: Variant = VARIANTS[name]
    result = measured[name]
    assert not result.error
    assert 0 < result.registers <= 255
    assert result.shared_bytes <= SHARED_MEMORY_LIMIT
    assert (result.stack_bytes, result.local_bytes) == (0, 0), "values spill out of the registers"
    assert result.has_wgmma >= variant.wgmma, "wgmma was expected"
