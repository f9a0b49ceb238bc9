"""A tiny model on disk, and one service with two ranks over it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service_process import ServiceProcess, serving_service, write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def sharded(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("sharded")
    with serving_service(directory, tiny_checkpoint, NUM_SHARD="2") as service:
        yield service
