"""A tiny model on disk, and workers and engines over it."""

import pytest

from tests.support.local_engine import LocalEngine, load_tiny_worker, write_tiny_model
from tokenwire_service.runner.worker import Worker
from tokenwire_service.weights.resolved import ResolvedModel


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_worker(tiny_model: ResolvedModel) -> Worker:
    """Shared: a scheduler that starts anew joins every slot it uses anew."""
    return load_tiny_worker(tiny_model)


@pytest.fixture
def engine(tiny_worker: Worker) -> LocalEngine:
    return LocalEngine(tiny_worker)
