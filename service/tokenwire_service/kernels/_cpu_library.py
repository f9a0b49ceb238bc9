"""The native CPU kernels as one library: their sources and C signatures in a single place."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from tokenwire_service.kernels._build import BuildError, default_cache_dir, load_library

_LOG = logging.getLogger(__name__)
_HERE = Path(__file__).parent
_SOURCES = tuple(
    _HERE / op / "_cpu.cpp" for op in ("add_rms_norm", "qk_norm_rope_store", "paged_attention", "silu_mul")
)
_HEADERS = (_HERE / "_cpu.h", _HERE / "paged_attention" / "_tiles.h")

_CODES: Mapping[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}
_SIGNATURES: Mapping[str, str] = MappingProxyType(
    {
        "tw_add_rms_norm": "pppp" + "ii" + "f" + "i",
        "tw_silu_mul": "pp" + "ii" + "i",
        "tw_qk_norm_rope_store": "pppppppp" + "iiiiiiii" + "f" + "i",
        "tw_paged_attention": "ppppppp" + "iiiiiiiii" + "ff" + "i",
    }
)
"""Argument codes (p pointer, i int64, f float); the last argument is the number of threads. All return int64."""


@dataclass(frozen=True, slots=True)
class CpuLibrary:
    """The loaded native kernels."""

    functions: ctypes.CDLL

    @property
    def num_threads(self) -> int:
        """Threads a kernel may use: the ones torch uses."""
        return torch.get_num_threads()


def load_cpu_library(cache_dir: Path | None = None) -> CpuLibrary | None:
    """The native kernels, compiled on first use; None, with one log line, where they cannot be built."""
    try:
        library = load_library("cpu", _SOURCES, _HEADERS, cache_dir or default_cache_dir())
    except BuildError as error:
        _LOG.warning("native CPU kernels are off, generation will be slower: %s", error)
        return None
    for name, codes in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [_CODES[code] for code in codes]
        function.restype = ctypes.c_int64
    return CpuLibrary(library)
