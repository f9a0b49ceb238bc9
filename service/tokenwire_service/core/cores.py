"""Cores this process may keep busy, the container's limits included."""

from __future__ import annotations

import os
import sys
from pathlib import Path

UNLIMITED = 1 << 60


def usable_cores(root: Path = Path("/")) -> int:
    """Threads beyond a container's CPU quota only make it stand still longer. `root` is where /proc and /sys are."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quotas = [_cpu_quota(directory / "cpu.max") for directory in cgroup_v2_directories(root)]
    v1 = root / "sys/fs/cgroup/cpu"
    quotas.append(_cpu_quota(v1 / "cpu.cfs_quota_us", v1 / "cpu.cfs_period_us"))
    return max(1, min(cores, *quotas))


def cgroup_v2_directories(root: Path) -> list[Path]:
    """This process's own and those above it."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return [mount]
    own = next((line[3:] for line in lines if line.startswith("0::")), "/").strip("/")
    path = mount / own
    return [mount, *(parent for parent in (path, *path.parents) if mount in parent.parents)]


def _cpu_quota(*files: Path) -> int:
    """Whole cores, rounded up, of a quota and its period in microseconds; huge when there is no quota."""
    try:
        quota, period = " ".join(path.read_text() for path in files).split()
        return UNLIMITED if quota in ("max", "-1") else -(-int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return UNLIMITED
