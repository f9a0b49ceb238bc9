"""Compiles C++ sources with the system's compiler, once per machine, into a shared library with a plain C ABI."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_LOG = logging.getLogger(__name__)
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-fopenmp",
)
_COMPILE_TIMEOUT_S = 300.0


class BuildError(Exception):
    """There is no compiler, or it failed; the message is one line."""


def default_cache_dir() -> Path:
    """Where libraries are kept when the caller names no directory."""
    return Path.home() / ".cache" / "tokenwire" / "kernels"


def load_library(
    name: str, sources: Sequence[Path], headers: Sequence[Path], cache_dir: Path, march: str = "native"
) -> ctypes.CDLL:
    """Loads the library of `sources`, compiling it for the processor `march` unless `cache_dir` has it already. Raises
    BuildError.

    Where `cache_dir` cannot be written the library is compiled for this process alone.
    """
    compiler = _find_compiler()
    try:
        gomp = _torch_openmp()
        command = [compiler, *_FLAGS, f"-march={march}"]
        file_name = f"{name}-{_key(command, gomp, [*sources, *headers])}.so"
        if _is_writable(cache_dir):
            return _load_or_build(command, sources, gomp is not None, cache_dir / file_name)
        with tempfile.TemporaryDirectory() as scratch:
            return _load_or_build(command, sources, gomp is not None, Path(scratch) / file_name)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(_one_line(error)) from error


def _is_writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)


def _load_or_build(command: Sequence[str], sources: Sequence[Path], shares_openmp: bool, library: Path) -> ctypes.CDLL:
    if library.exists():
        try:
            return ctypes.CDLL(str(library))
        except OSError:
            # Damaged, or built against libraries that are gone: the new one takes its place.
            library.unlink(missing_ok=True)
    _compile(command, sources, shares_openmp, library)
    return ctypes.CDLL(str(library))


def _find_compiler() -> str:
    for name in _COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return path
    raise BuildError(f"no C++ compiler found (tried {', '.join(_COMPILERS)})")


def _torch_openmp() -> Path | None:
    """Torch's own OpenMP runtime, made visible to libraries loaded later, which share its thread pool."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        return path
    return None


def _key(command: Sequence[str], gomp: Path | None, files: Sequence[Path]) -> str:
    version = subprocess.run([command[0], "--version"], capture_output=True, timeout=30, check=False).stdout
    parts = [version, " ".join(command).encode(), str(gomp is not None).encode(), _cpu_description()]
    parts += [path.read_bytes() for path in files]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _cpu_description() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    wanted = ("flags", "Features", "model name")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})).encode()


def _compile(command: Sequence[str], sources: Sequence[Path], shares_openmp: bool, library: Path) -> None:
    _LOG.info("compiling native kernels into %s; this happens once", library)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        objects = [str(Path(scratch) / f"{index}.o") for index in range(len(sources))]
        commands = [[*command, "-c", str(source), "-o", to] for source, to in zip(sources, objects, strict=True)]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for _ in pool.map(_run, commands):
                pass
        # Without -fopenmp at link time the OpenMP symbols resolve to the runtime that torch has loaded.
        link = [command[0], "-shared", *objects, "-o", str(Path(scratch) / "out.so")]
        _run(link if shares_openmp else [*link, "-fopenmp"])
        # Another process may have done the same meanwhile: the rename is atomic and both results are equal.
        (Path(scratch) / "out.so").replace(library)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_TIMEOUT_S)


def _one_line(error: Exception) -> str:
    detail = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in detail.splitlines() if "error" in line] or detail.splitlines() or [repr(error)]
    return lines[0][:300]
