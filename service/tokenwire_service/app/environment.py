"""Versions and devices, for bug reports."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from tokenwire_service.core.cores import usable_cores

PACKAGES = (
    "tokenwire-service",
    "tokenwire-client",
    "tokenwire-gateway-openai",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "grpcio",
    "protobuf",
    "numpy",
)


def package_version(name: str) -> str:
    """The installed version; 'not installed' when there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def describe_environment() -> Iterator[tuple[str, str]]:
    """Names and values, one a line."""
    for name in PACKAGES:
        yield name, package_version(name)
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "platform", platform.platform()
    yield from _devices()


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    yield "cpu cores", f"{usable_cores()} usable of {os.cpu_count()}"
    yield "cpu capability", torch.backends.cpu.get_cpu_capability()
    yield "cuda", str(torch.version.cuda or "not in this torch")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"gpu {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
