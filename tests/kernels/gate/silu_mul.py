"""What SwiGLU is compiled for."""

from __future__ import annotations

from tests.support.triton_gate import Variant
from tokenwire_service.kernels.silu_mul import _triton


def variants() -> list[Variant]:
    return [
        Variant(
            dtype,
            _triton.silu_mul_kernel,
            {"gate_up": f"*{dtype}", "out": f"*{dtype}", "width": "i32", "BLOCK": "constexpr"},
            {"BLOCK": _triton.BLOCK},
            aligned=("gate_up", "out", "width"),
        )
        for dtype in ("bf16", "fp32")
    ]
