from __future__ import annotations

import pytest

from tests.support.kernel_backends import available_backends
from tokenwire_service.kernels.backend import Backend


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backend]:
    return available_backends(tmp_path_factory.mktemp("kernels"))
