"""Which implementation the kernels use: one value, chosen once per model and passed to every kernel.

Each `kernels/<op>/__init__.py` looks at it to pick between its implementations; nothing else decides.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from tokenwire_service.errors import ConfigError
from tokenwire_service.kernels._cpu_library import CpuLibrary, has_bf16_products, load_cpu_library, type_name

__all__ = ["Backend", "LinearFormat", "has_bf16_products", "reference_backend", "select_backend"]

_LOG = logging.getLogger(__name__)


class LinearFormat(enum.Enum):
    """How the weights of linear layers are held."""

    PLAIN = "plain"
    """[N, K] in the model's type."""
    ONEDNN = "onednn"
    """float32 in the layout oneDNN likes: for a CPU without a compiler."""
    FLOAT32 = "float32"
    """This and the following are packed for the native CPU kernels."""
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    """Activations are rounded to it too on a CPU with such products (AVX512_BF16); others widen the weights: results
    differ between them in the third digit."""
    INT8 = "int8"
    """8 bits, a scale for each 32 input features."""

    @property
    def is_native(self) -> bool:
        return self not in (LinearFormat.PLAIN, LinearFormat.ONEDNN)


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a model's tensors live and what may work on them. The plain value runs every kernel's PyTorch reference."""

    device: torch.device
    library: CpuLibrary | None = None
    """Native kernels for the CPU; activations are float32 there."""
    triton: bool = False
    """Triton kernels: on a GPU, or on the CPU under Triton's interpreter, which only tests use."""
    linear_format: LinearFormat = LinearFormat.PLAIN
    compute_dtype: torch.dtype | None = None
    """Type of activations; None takes the one the model is held in."""


def reference_backend(device: torch.device | None = None) -> Backend:
    """Every kernel as its PyTorch reference, on `device` (the CPU unless given)."""
    return Backend(device or torch.device("cpu"))


def select_backend(
    device: torch.device, dtype: torch.dtype, quantize: str | None = None, cache_dir: Path | None = None
) -> Backend:
    """The fastest implementation there is for a model held in `dtype`, or quantized, on `device`.

    May compile the native CPU kernels, which are cached under `cache_dir` (~/.cache/tokenwire/kernels unless given).
    Raises ConfigError when the device cannot do what is asked.
    """
    if device.type == "cpu":
        return _cpu_backend(device, dtype, quantize, cache_dir)
    if quantize:
        raise ConfigError(f"--quantize {quantize} is for the CPU; leave it out")
    return Backend(device, triton=device.type == "cuda" and find_spec("triton") is not None)


def _cpu_backend(device: torch.device, dtype: torch.dtype, quantize: str | None, cache_dir: Path | None) -> Backend:
    name = type_name(dtype)
    library = load_cpu_library(cache_dir) if name is not None else None
    if library is not None:
        return Backend(
            device, library=library, linear_format=LinearFormat(quantize or name), compute_dtype=torch.float32
        )
    if quantize:
        raise ConfigError(
            f"--quantize {quantize} needs the native CPU kernels; install a C++ compiler, or leave it out"
        )
    if dtype is not torch.float32:
        _LOG.warning("without native kernels weights are held as float32, not as %s", str(dtype).removeprefix("torch."))
    form = LinearFormat.ONEDNN if torch._C._has_mkldnn else LinearFormat.PLAIN
    return Backend(device, linear_format=form, compute_dtype=torch.float32)
