"""A tiny model on disk, and one service over it for the tests that leave it alive."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.otlp import Collector, running_collector
from tests.support.service_process import ServiceProcess, serving_service, write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def service(
    tiny_checkpoint: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.endpoint}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serving_service(tmp_path_factory.mktemp("service"), tiny_checkpoint, **environ) as service:
        yield service
