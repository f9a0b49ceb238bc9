"""What GeGLU is compiled for."""

from __future__ import annotations

from tests.support.triton_gate import Variant
from tokenwire_service.kernels.gelu_mul import _triton


def variants() -> list[Variant]:
    signature = {"gate_up": "*bf16", "out": "*bf16", "width": "i32", "TANH": "constexpr", "BLOCK": "constexpr"}
    return [
        Variant(
            "tanh" if tanh else "erf",
            _triton.gelu_mul_kernel,
            signature,
            {"TANH": tanh, "BLOCK": _triton.BLOCK},
            aligned=("gate_up", "out", "width"),
        )
        for tanh in (True, False)
    ]
