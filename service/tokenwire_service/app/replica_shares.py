"""What of the machine each of several engines gets."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenwire_service.config import EngineConfig
from tokenwire_service.core.cores import usable_cores
from tokenwire_service.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_DEVICE_FILE = re.compile(r"nvidia\d+")


@dataclass(frozen=True, slots=True)
class Share:
    """One engine's limits and environment."""

    config: EngineConfig
    environment: Mapping[str, str]


def shares(config: EngineConfig, num_replicas: int, environ: Mapping[str, str], gpus: Sequence[str]) -> list[Share]:
    """Split GPUs `--num-shard` by `--num-shard`, or evenly when it is 0; without GPUs cores and memory, evenly.

    `gpus`: see `visible_gpus`. Raises ConfigError when there are too few.
    """
    if config.device == "cpu" or not gpus:
        return [Share(_part_of_cpu(config, num_replicas), environ)] * num_replicas
    each = config.num_shard or len(gpus) // num_replicas
    if not each or each * num_replicas > len(gpus):
        raise ConfigError(
            f"--replicas {num_replicas} of {max(each, 1)} GPUs each: {len(gpus)} are visible (see {VISIBLE}); lower "
            "--replicas or --num-shard, or use --device cpu"
        )
    own = dataclasses.replace(config, num_shard=each, num_threads=_threads(config, num_replicas))
    parts = [",".join(gpus[each * index : each * (index + 1)]) for index in range(num_replicas)]
    return [Share(own, {**environ, VISIBLE: part}) for part in parts]


def visible_gpus(environ: Mapping[str, str], root: Path = Path("/")) -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them, those of the operator's own list when there is one; none for a torch
    without CUDA. Asks no driver, for which this process would hold memory on each. `root` is where /dev is."""
    if not _torch_has_cuda():
        return []
    if VISIBLE not in environ:
        return [str(index) for index in range(_num_device_files(root))]
    names: list[str] = []
    for name in environ[VISIBLE].split(","):
        # As CUDA does: what comes after a name of nothing is not looked at.
        if not name.strip() or name.strip().startswith("-"):
            break
        names.append(name.strip())
    return names


def _part_of_cpu(config: EngineConfig, num_replicas: int) -> EngineConfig:
    return dataclasses.replace(
        config,
        num_threads=_threads(config, num_replicas),
        kv_cache_memory_fraction=config.kv_cache_memory_fraction / num_replicas,
    )


def _threads(config: EngineConfig, num_replicas: int) -> int:
    return max(1, (config.num_threads or usable_cores()) // num_replicas)


def _num_device_files(root: Path) -> int:
    try:
        return sum(_DEVICE_FILE.fullmatch(path.name) is not None for path in (root / "dev").iterdir())
    except OSError:
        return 0


def _torch_has_cuda() -> bool:
    """Without importing it, which takes seconds and memory that this process has no use for."""
    found = importlib.util.find_spec("torch")
    return any(
        (Path(place) / "lib" / "libtorch_cuda.so").exists()
        for place in (found.submodule_search_locations or () if found else ())
    )
