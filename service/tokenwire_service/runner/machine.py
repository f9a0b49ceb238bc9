"""What this process may take of the machine: devices and free memory, the container's limits included."""

from __future__ import annotations

from pathlib import Path

import torch

from tokenwire_service.core.cores import UNLIMITED, cgroup_v2_directories
from tokenwire_service.errors import ConfigError


def choose_device(name: str, rank: int = 0) -> torch.device:
    """Where a rank's model runs; 'auto' is a GPU when there is one. Raises ConfigError when the rank has no GPU."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if rank >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: rank {rank} has no GPU of {torch.cuda.device_count()}; use --device cpu, or "
            "make a GPU and a torch built for CUDA available"
        )
    return torch.device("cuda", rank)


def choose_num_shards(asked: int, device: str) -> int:
    """Ranks on this machine; 0 asks for one for each visible GPU. Raises ConfigError when there are fewer GPUs."""
    num_gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if asked > num_gpus > 0:
        raise ConfigError(
            f"--num-shard {asked}: {num_gpus} GPUs are visible (CUDA_VISIBLE_DEVICES); lower it, or use --device cpu"
        )
    return asked or max(1, num_gpus)


def free_memory_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Memory a new allocation on `device` may take. `root` is where /proc and /sys are found."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_meminfo_available(root), _cgroup_available(root))


def _meminfo_available(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return UNLIMITED


def _cgroup_available(root: Path) -> int:
    """What is left under the memory limits of this process's cgroup (v2, then v1) and those above it."""
    directories = cgroup_v2_directories(root)
    candidates = [_left(directory, "memory.max", "memory.current", "inactive_file") for directory in directories]
    v1 = root / "sys/fs/cgroup/memory"
    candidates.append(_left(v1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    return min(candidates)


def _left(directory: Path, limit_name: str, usage_name: str, cache_key: str) -> int:
    """Limit - usage + page cache that can be dropped; huge when there is no limit."""
    try:
        limit_text = (directory / limit_name).read_text().strip()
        usage = int((directory / usage_name).read_text())
        statistics = dict(line.split()[:2] for line in (directory / "memory.stat").read_text().splitlines() if line)
        if limit_text == "max" or int(limit_text) >= UNLIMITED:
            return UNLIMITED
        return max(0, int(limit_text) - usage + int(statistics.get(cache_key, 0)))
    except (OSError, ValueError):
        return UNLIMITED
