"""Which types weights, keys and values are held in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from tokenwire_service.errors import ConfigError
from tokenwire_service.kernels.backend import Backend, has_bf16_products

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """'auto' is what the device reads fast and computes well: bfloat16 on a GPU and on a CPU that multiplies it,
    float16, which is more exact, on one that widens either. May compile the native kernels, to ask them."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" or has_bf16_products() else "float16"
    return _DTYPES[name]


def choose_kv_dtype(name: str, dtype: torch.dtype, backend: Backend) -> torch.dtype:
    """The type keys and values are kept in beside weights of `dtype`, or quantized ones: attention has no weights.
    Raises ConfigError for a type without kernels."""
    if name == "fp8_e4m3fn":
        if not backend.triton:
            raise ConfigError(f"--kv-cache-dtype {name} is for GPUs; leave it out")
        return torch.float8_e4m3fn
    if name != "auto":
        return _DTYPES[name]
    # The reference kernels compute in the type they read.
    return dtype if backend.library is not None else backend.compute_dtype or dtype
