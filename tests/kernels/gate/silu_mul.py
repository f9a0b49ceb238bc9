"""What the gated activation is compiled for."""

from __future__ import annotations

from tests.support.triton_gate import Variant
from tokenwire_service.kernels.silu_mul import _triton


def variants() -> list[Variant]:
    signature = {"gate_up": "*bf16", "out": "*bf16", "width": "i32", "BLOCK": "constexpr"}
    return [Variant("bf16", _triton.silu_mul_kernel, signature, {"BLOCK": _triton.BLOCK})]
