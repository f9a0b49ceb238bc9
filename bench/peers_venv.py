"""A virtual environment for each peer, made when it is first needed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

_CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_UNWANTED = {"vllm": ("torchvision", "torchaudio", "torchcodec")}
"""By environment: packages that come along built for CUDA and keep the CPU build from being imported."""


def peer_python(name: str, root: Path, requirements: Path, *, install: bool = True) -> Path:
    """The Python of .bench/<name>, with requirements/bench-<name>.txt installed in it.

    With `install` off nothing is changed. Raises RuntimeError when the environment cannot be made or is not there.
    """
    directory, wanted = root / name, requirements / f"bench-{name}.txt"
    python = directory / "bin" / "python"
    stamp = directory / f".installed-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:16]}"
    if stamp.exists() or (not install and python.exists()):
        return python
    if not install:
        raise RuntimeError(f"{directory} is not there; run without --skip-install")
    if not python.exists():
        venv.create(directory, with_pip=True)
    _install(python, wanted, name)
    for old in directory.glob(".installed-*"):
        old.unlink()
    stamp.touch()
    return python


def _install(python: Path, wanted: Path, name: str) -> None:
    print(f"installing {wanted.name} ...", file=sys.stderr)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    torch = [line for line in wanted.read_text().splitlines() if line.startswith("torch==")]
    if torch and subprocess.run([str(python), "-c", "import torch"], capture_output=True, check=False).returncode:
        quick = ["--timeout", "5", "--retries", "0"]
        if _run([*pip, "install", "-q", *quick, "--index-url", _CPU_TORCH_INDEX, *torch], quiet=True):
            _must([*pip, "install", "-q", *torch])
    _must([*pip, "install", "-q", "--only-binary", ":all:", "-r", str(wanted)])
    if name in _UNWANTED:
        _must([*pip, "uninstall", "-q", "-y", *_UNWANTED[name]])


def _run(command: list[str], *, quiet: bool = False) -> int:
    return subprocess.run(
        command, check=False, stdout=sys.stderr, stderr=subprocess.DEVNULL if quiet else None
    ).returncode


def _must(command: list[str]) -> None:
    if _run(command):
        raise RuntimeError(f"failed: {' '.join(command)}")
