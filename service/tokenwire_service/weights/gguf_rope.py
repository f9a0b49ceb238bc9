"""Llama 3's rope scaling, recovered from the per-frequency divisors llama.cpp stores instead of its parameters."""

from __future__ import annotations

import math
import struct
from typing import Any

from tokenwire_service.errors import UnsupportedModelError, WeightsError
from tokenwire_service.quantization.gguf_types import GgufType
from tokenwire_service.weights.gguf_file import GgufFile, GgufTensor

# Every released Llama 3.1–3.3 has these; only `factor` differs (8, 32).
_LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR, _ORIGINAL_CONTEXT = 1.0, 4.0, 8192
_TOLERANCE = 1e-3


def llama3_scaling(file: GgufFile, theta: float, rotary_dim: int) -> dict[str, Any]:
    """The rope_scaling that yields the file's rope_freqs.weight. Raises UnsupportedModelError where none does."""
    tensor = next(tensor for tensor in file.tensors if tensor.name == "rope_freqs.weight")
    divisors = _read_floats(file, tensor)
    factor = round(max(divisors), 3)
    expected = llama3_divisors(theta, rotary_dim, factor)
    if len(expected) != len(divisors) or any(
        not math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(expected, divisors, strict=True)
    ):
        raise UnsupportedModelError(f"{file.path}: rope_freqs.weight is not Llama 3's rope scaling, the one supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW_FREQ_FACTOR,
        "high_freq_factor": _HIGH_FREQ_FACTOR,
        "original_max_position_embeddings": _ORIGINAL_CONTEXT,
    }


def llama3_divisors(theta: float, rotary_dim: int, factor: float) -> list[float]:
    """What each of the rotary_dim / 2 frequencies is divided by."""
    divisors = []
    for i in range(rotary_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / rotary_dim)
        smooth = (_ORIGINAL_CONTEXT / wavelength - _LOW_FREQ_FACTOR) / (_HIGH_FREQ_FACTOR - _LOW_FREQ_FACTOR)
        smooth = min(max(smooth, 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def _read_floats(file: GgufFile, tensor: GgufTensor) -> tuple[float, ...]:
    if tensor.type is not GgufType.F32 or len(tensor.shape) != 1:
        raise WeightsError(f"{file.path}: damaged GGUF file (rope_freqs.weight is not a row of float32)")
    with file.path.open("rb") as stream:
        stream.seek(tensor.offset)
        return struct.unpack(f"<{tensor.shape[0]}f", stream.read(tensor.num_bytes))
