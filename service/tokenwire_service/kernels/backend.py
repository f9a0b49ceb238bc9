"""Which implementation the kernels use: one value, chosen once per model and passed to every kernel.

Each `kernels/<op>/__init__.py` looks at it to pick between its implementations; nothing else decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from tokenwire_service.kernels._cpu_library import CpuLibrary, load_cpu_library


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a model's tensors live and what may work on them. The plain value runs every kernel's PyTorch reference."""

    device: torch.device
    library: CpuLibrary | None = None
    """Native kernels for the CPU."""
    triton: bool = False
    """Triton kernels: on a GPU, or on the CPU under Triton's interpreter, which only tests use."""
    packed_linear: bool = False
    """Whether linear weights are reordered once for oneDNN (float32 on the CPU)."""


def reference_backend(device: torch.device | None = None) -> Backend:
    """Every kernel as its PyTorch reference, on `device` (the CPU unless given)."""
    return Backend(device or torch.device("cpu"))


def select_backend(device: torch.device, dtype: torch.dtype, cache_dir: Path | None = None) -> Backend:
    """The fastest implementation there is for a model of `dtype` on `device`.

    May compile the native CPU kernels, which are cached under `cache_dir` (~/.cache/tokenwire/kernels unless given).
    """
    if device.type == "cuda":
        return Backend(device, triton=find_spec("triton") is not None)
    if device.type != "cpu" or dtype != torch.float32:
        return Backend(device)
    return Backend(device, library=load_cpu_library(cache_dir), packed_linear=torch._C._has_mkldnn)
