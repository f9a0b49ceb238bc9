"""What LayerNorm is compiled for."""

from __future__ import annotations

from tests.support.triton_gate import Variant
from tokenwire_service.kernels.add_layer_norm import _triton

POINTERS = ("residual", "delta", "weight", "bias", "out")


def variants() -> list[Variant]:
    block, num_warps = _triton.config(4096)
    signature = dict.fromkeys(POINTERS, "*bf16") | {"width": "i32", "eps": "fp32", "BLOCK": "constexpr"}
    return [
        Variant(
            "4096",
            _triton.add_layer_norm_kernel,
            signature,
            {"BLOCK": block},
            num_warps=num_warps,
            aligned=(*POINTERS, "width"),
        ),
        Variant(
            "4096-first-no-bias",
            _triton.add_layer_norm_kernel,
            signature | {"delta": "constexpr", "bias": "constexpr"},
            {"BLOCK": block, "delta": None, "bias": None},
            num_warps=num_warps,
            aligned=("residual", "weight", "out", "width"),
        ),
    ]
