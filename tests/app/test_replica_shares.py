"""What of the machine each replica gets."""

import dataclasses
from pathlib import Path

import pytest

from tokenwire_service.app import replica_shares
from tokenwire_service.app.replica_shares import VISIBLE, shares, visible_gpus
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.cores import usable_cores
from tokenwire_service.errors import ConfigError

GPUS = ["4", "5", "GPU-a", "7"]


def visible(config: EngineConfig, num_replicas: int) -> list[str]:
    parts = shares(config, num_replicas, {"HOME": "h", VISIBLE: "4,5,GPU-a,7"}, GPUS)
    assert {part.environment["HOME"] for part in parts} == {"h"}
    return [part.environment[VISIBLE] for part in parts]


def test_cores_and_memory_are_split_without_gpus() -> None:
    config = EngineConfig(num_threads=5, kv_cache_memory_fraction=0.4)
    parts = shares(config, 2, {"A": "1"}, [])
    own = dataclasses.replace(config, num_threads=2, kv_cache_memory_fraction=0.2)
    assert [part.config for part in parts] == [own, own]
    assert [part.environment for part in parts] == [{"A": "1"}] * 2
    assert shares(EngineConfig(), 1000, {}, [])[0].config.num_threads == 1
    assert shares(EngineConfig(), 1, {}, [])[0].config.num_threads == usable_cores()


def test_a_cpu_that_was_asked_for_is_split_beside_gpus() -> None:
    (part, _) = shares(EngineConfig(device="cpu", num_threads=4), 2, {}, GPUS)
    assert (part.config.num_threads, VISIBLE in part.environment) == (2, False)


def test_each_has_gpus_of_its_own_and_all_their_memory() -> None:
    assert visible(EngineConfig(num_shard=1), 3) == ["4", "5", "GPU-a"]
    assert visible(EngineConfig(num_shard=2), 2) == ["4,5", "GPU-a,7"]
    parts = shares(EngineConfig(num_shard=2, kv_cache_memory_fraction=0.4), 2, {}, GPUS)
    assert [part.config.kv_cache_memory_fraction for part in parts] == [0.4, 0.4]


def test_all_gpus_are_taken_when_nobody_says_how_many() -> None:
    assert visible(EngineConfig(), 2) == ["4,5", "GPU-a,7"]
    assert visible(EngineConfig(), 3) == ["4", "5", "GPU-a"]
    assert [part.config.num_shard for part in shares(EngineConfig(), 2, {}, GPUS)] == [2, 2]


@pytest.mark.parametrize(("num_shard", "num_replicas"), [(2, 3), (0, 5), (5, 1)])
def test_too_few_gpus_are_refused(num_shard: int, num_replicas: int) -> None:
    with pytest.raises(ConfigError, match=rf"--replicas {num_replicas} .* 4 are visible"):
        shares(EngineConfig(num_shard=num_shard), num_replicas, {}, GPUS)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, ["0", "1"]),
        ("3, GPU-b", ["3", "GPU-b"]),
        ("", []),
        ("-1", []),
        ("2,-1,3", ["2"]),
        ("NoDevFiles", ["NoDevFiles"]),
    ],
)
def test_gpus_are_those_the_operator_shows(
    given: str | None, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_shares, "_torch_has_cuda", lambda: True)
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / "dev" / name).touch()
    assert visible_gpus({} if given is None else {VISIBLE: given}, tmp_path) == found


def test_a_torch_without_cuda_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_shares, "_torch_has_cuda", lambda: False)
    assert visible_gpus({VISIBLE: "0"}, tmp_path) == []
    monkeypatch.setattr(replica_shares, "_torch_has_cuda", lambda: True)
    assert visible_gpus({}, tmp_path / "nowhere") == []
