from __future__ import annotations

import logging
import shutil
import stat
from pathlib import Path

import pytest
import torch

from tokenwire_service.kernels._cpu_library import load_cpu_library
from tokenwire_service.kernels.backend import has_bf16_products, select_backend


def test_the_library_builds_where_there_is_a_compiler_and_is_kept(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        assert load_cpu_library(tmp_path) is None
        assert not has_bf16_products(tmp_path)
        return
    library = load_cpu_library(tmp_path)
    assert library is not None
    assert has_bf16_products(tmp_path) == library.has_bf16_products
    (built,) = tmp_path.iterdir()
    before = built.stat().st_mtime_ns
    assert load_cpu_library(tmp_path) is not None
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [before]


def test_a_damaged_library_is_built_again(tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    if load_cpu_library(whole) is None:
        return
    (built,) = whole.iterdir()
    damaged.mkdir()
    (damaged / built.name).write_bytes(b"not a library")
    assert load_cpu_library(damaged) is not None
    assert (damaged / built.name).stat().st_size == built.stat().st_size


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file where the directory should be")
    assert (load_cpu_library(taken) is None) == (shutil.which("c++") is None)


@pytest.mark.parametrize("script", [None, "#!/bin/sh\necho 'x.cpp:1: error: no such flag' >&2\nexit 1\n"])
def test_a_missing_or_failing_compiler_costs_one_log_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str | None
) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    if script is not None:
        (bin_dir / "c++").write_text(script)
        (bin_dir / "c++").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(bin_dir))
    with caplog.at_level(logging.WARNING):
        backend = select_backend(torch.device("cpu"), torch.float32, cache_dir=tmp_path / "cache")
    assert backend.library is None
    assert not has_bf16_products(tmp_path / "cache")
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert ("no such flag" if script else "no C++ compiler") in record.getMessage()


def test_other_types_and_devices_run_the_references(tmp_path: Path) -> None:
    for device, dtype in (("cpu", torch.float64), ("meta", torch.float32)):
        backend = select_backend(torch.device(device), dtype, cache_dir=tmp_path)
        assert backend.library is None
    assert list(tmp_path.iterdir()) == []
