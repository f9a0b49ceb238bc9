"""What every result file says besides its numbers: machine, commit, versions, date."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_VECTOR_FLAGS = ("avx2", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """Processor, cores and memory of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "vector": [name for name in _VECTOR_FLAGS if name in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Short hash of HEAD, with a + when the tree has changes."""
    run = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=10"]
    return subprocess.run(run, capture_output=True, text=True, check=False).stdout.strip()


def versions(*packages: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in packages}


def write(
    kind: str,
    workload: dict[str, Any],
    rows: list[dict[str, Any]],
    packages: tuple[str, ...],
    *,
    more: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> Path:
    """bench/results/<date>-<kind>.json, or `path`. `more` is what this kind of benchmark has to say besides."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    record = {
        "kind": kind,
        "date": today,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(*packages),
        "workload": workload,
        **(more or {}),
        "rows": rows,
    }
    path = path or RESULTS / f"{today}-{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path
