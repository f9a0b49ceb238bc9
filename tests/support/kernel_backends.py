"""The kernel backends this machine has."""

from __future__ import annotations

from pathlib import Path

import torch

from tokenwire_service.kernels.backend import Backend, reference_backend, select_backend


def available_backends(cache_dir: Path) -> dict[str, Backend]:
    """By name: the reference always, the native one where it compiles."""
    native = select_backend(torch.device("cpu"), torch.float32, cache_dir)
    backends = {"reference": reference_backend()}
    if native.library is not None:
        backends["native"] = native
    return backends
