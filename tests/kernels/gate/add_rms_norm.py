"""What RMSNorm is compiled for: the width of a small model, of an 8B and of a 70B."""

from __future__ import annotations

from tests.support.triton_gate import Variant
from tokenwire_service.kernels.add_rms_norm import _triton


def variants() -> list[Variant]:
    return [
        *(variant(width, adds=True) for width in (576, 4096, 8192)),
        variant(4096, adds=False),
    ]


def variant(width: int, adds: bool) -> Variant:
    block, num_warps = _triton.config(width)
    delta = {"delta": "*bf16" if adds else "constexpr"}
    return Variant(
        f"{width}{'' if adds else '-first'}",
        _triton.add_rms_norm_kernel,
        dict.fromkeys(("residual", "weight", "out"), "*bf16")
        | delta
        | {"width": "i32", "eps": "fp32", "BLOCK": "constexpr"},
        {"BLOCK": block} if adds else {"BLOCK": block, "delta": None},
        num_warps=num_warps,
        aligned=("residual", "weight", "out", "width", *(["delta"] if adds else [])),
    )
