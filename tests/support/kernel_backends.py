"""The kernel backends this machine has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch

from tokenwire_service.kernels._cpu_library import load_cpu_library
from tokenwire_service.kernels.backend import Backend, reference_backend, select_backend

_OLDER: Mapping[str, str] = MappingProxyType({"x86-64-v4": "avx512_vnni", "x86-64-v3": "avx512f", "x86-64": "avx2"})
"""Instruction sets to compile for as well, where the processor has this better one."""


def available_backends(cache_dir: Path) -> dict[str, Backend]:
    """By name: the reference always; the native one where it compiles, also as older processors would have it."""
    native = select_backend(torch.device("cpu"), torch.float32, cache_dir=cache_dir)
    backends = {"reference": reference_backend()}
    if native.library is not None:
        backends["native"] = native
        for march, better in _OLDER.items():
            if better in Path("/proc/cpuinfo").read_text().split():
                backends[march] = replace(native, library=load_cpu_library(cache_dir, march))
    return backends
