"""The native CPU kernels as one library: their sources and arguments in a single place."""

from __future__ import annotations

import ctypes
import logging
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from tokenwire_service.kernels._build import BuildError, default_cache_dir, load_library
from tokenwire_service.kernels._pool import Pool

_LOG = logging.getLogger(__name__)
_HERE = Path(__file__).parent
_SOURCES = (
    _HERE / "_cpu_run.cpp",
    _HERE / "add_rms_norm" / "_cpu.cpp",
    _HERE / "embed_gather" / "_cpu.cpp",
    _HERE / "exchange" / "_cpu.cpp",
    _HERE / "linear" / "_cpu.cpp",
    _HERE / "linear" / "_cpu_int8.cpp",
    _HERE / "paged_attention" / "_cpu.cpp",
    _HERE / "qk_norm_rope_store" / "_cpu.cpp",
    _HERE / "silu_mul" / "_cpu.cpp",
)
_HEADERS = (
    _HERE / "_cpu.h",
    _HERE / "_cpu_bf16.h",
    _HERE / "linear" / "_cpu.h",
    _HERE / "paged_attention" / "_paired.h",
    _HERE / "paged_attention" / "_place.h",
    _HERE / "paged_attention" / "_plan.h",
    _HERE / "paged_attention" / "_softmax.h",
    _HERE / "paged_attention" / "_tiles.h",
    _HERE / "paged_attention" / "_widened.h",
    _HERE / "paged_attention" / "_worker.h",
)

_OF_ONE_TYPE: Mapping[str, str] = MappingProxyType(
    {
        "tw_add_rms_norm": "4P2qd",
        "tw_all_gather": "3Pq",
        "tw_all_reduce": "2Pq",
        "tw_embed_gather": "3P4q",
        "tw_linear_int8": "7P3q",
        "tw_linear_pack_int8": "2P2q",
        "tw_linear_rows_int8": "3P4q",
        "tw_silu_mul": "2P2q",
    }
)
_OF_EACH_FLOAT: Mapping[str, str] = MappingProxyType(
    {
        "tw_linear": "5P3q",
        "tw_linear_pack": "2P2q",
        "tw_linear_rows": "3P4q",
        "tw_paged_attention": "7P8q2d",
        "tw_qk_norm_rope_store": "8P7qd",
    }
)
_FLOATS: Mapping[torch.dtype, str] = MappingProxyType(
    {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
)
"""Types in which weights, keys and values may be kept; kernels compute in float32, see has_bf16_products."""
_CHECKS: Mapping[str, int] = MappingProxyType(
    {
        "tw_check_batch": 8,
        "tw_check_rows": 3,
        "tw_check_slots": 3,
        "tw_has_bf16_products": 0,
        "tw_work_done": 0,
        "tw_linear_int8_activation_bytes": 0,
        "tw_linear_int8_bytes": 2,
        "tw_linear_panel": 0,
    }
)
"""Plain functions of so many pointers and integers, which return an int64 and are never recorded."""


class Recording(Protocol):
    """Takes note of kernels that are run, and provides the memory they write to."""

    def add(self, kernel: int, args: bytes) -> None: ...

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor: ...


class CpuLibrary:
    """The loaded kernels, for one thread. A kernel takes its arguments as one struct of 8-byte members and runs on the
    threads torch uses."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        kernels = dict(_OF_ONE_TYPE)
        kernels |= {f"{name}_{dtype}": codes for name, codes in _OF_EACH_FLOAT.items() for dtype in _FLOATS.values()}
        self._kernels = {
            name: (_address(functions, name), struct.Struct(codes).pack) for name, codes in kernels.items()
        }
        self._checks = {name: _check(functions, name, count) for name, count in _CHECKS.items()}
        self.has_bf16_products = bool(self.check("tw_has_bf16_products"))
        """Whether bfloat16 numbers are multiplied as such: fast, and the other factor is rounded to bfloat16."""
        self._run_one = functions.tw_run_one
        self._run_one.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]
        self._run_one.restype = None
        self._run_all = functions.tw_run
        self._run_all.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self._run_all.restype = None
        self._recording: Recording | None = None
        self._pool = Pool()

    def run(self, name: str, *args: float) -> None:
        """Run one kernel: pointers and integers as int, then floats, in the order of its struct."""
        address, pack = self._kernels[name]
        packed = pack(*args)
        self._run_one(address, packed, torch.get_num_threads())
        if self._recording is not None:
            self._recording.add(address, packed)

    def run_all(self, calls: ctypes.Array[ctypes.c_void_p], count: int) -> None:
        """Run recorded kernels: `calls` holds each one's address and its arguments' address."""
        self._run_all(ctypes.addressof(calls), count, torch.get_num_threads())

    def check(self, name: str, *args: int) -> int:
        """Call a plain function."""
        return self._checks[name](*args)

    @property
    def work_done(self) -> int:
        """Kernels, and pieces of large ones, that this process has done. From any thread."""
        return self.check("tw_work_done")

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory for a kernel to write its result to."""
        if self._recording is not None:
            return self._recording.empty(shape, dtype)
        return self._pool.empty(shape, dtype)

    @contextmanager
    def recording(self, to: Recording) -> Iterator[None]:
        """Note every kernel run in this block. Raises ValueError when one is being made already."""
        if self._recording is not None:
            raise ValueError("kernels are being recorded already")
        self._recording = to
        try:
            yield
        finally:
            self._recording = None


def check_rows(library: CpuLibrary, ids: Tensor, num_rows: int) -> None:
    """Raises ValueError unless ids are contiguous int64 [T], IndexError for one outside [0, num_rows)."""
    if ids.dim() != 1 or ids.dtype is not torch.int64 or not ids.is_contiguous():
        raise ValueError(f"ids must be contiguous int64 [T], got {ids.dtype} {tuple(ids.shape)}")
    bad = library.check("tw_check_rows", ids.data_ptr(), len(ids), num_rows)
    if bad >= 0:
        raise IndexError(f"{int(ids[bad])} is outside [0, {num_rows})")


def type_name(dtype: torch.dtype) -> str | None:
    """Suffix of the kernels for numbers kept as `dtype`; None where there are none."""
    return _FLOATS.get(dtype)


def load_cpu_library(cache_dir: Path | None = None, march: str = "native") -> CpuLibrary | None:
    """The native kernels, compiled on first use; None, with one log line, where they cannot be built."""
    try:
        return CpuLibrary(load_library("cpu", _SOURCES, _HEADERS, cache_dir or default_cache_dir(), march))
    except BuildError as error:
        _LOG.warning("native CPU kernels are off, generation will be slower: %s", error)
        return None


def has_bf16_products(cache_dir: Path | None = None) -> bool:
    """CpuLibrary.has_bf16_products; False where the kernels cannot be built."""
    try:
        library = load_library("cpu", _SOURCES, _HEADERS, cache_dir or default_cache_dir())
    except BuildError:
        return False
    return bool(_check(library, "tw_has_bf16_products", 0)())


def _address(functions: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(functions, name), ctypes.c_void_p).value or 0


def _check(functions: ctypes.CDLL, name: str, num_arguments: int) -> Callable[..., int]:
    function = getattr(functions, name)
    # 64 bits hold a pointer as well.
    function.argtypes = [ctypes.c_int64] * num_arguments
    function.restype = ctypes.c_int64
    return function  # type: ignore[no-any-return]
