from __future__ import annotations

import pytest

from tests.support.interpreter_bf16 import patch_interpreter
from tests.support.kernel_backends import available_backends
from tokenwire_service.kernels.backend import Backend


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backend]:
    return available_backends(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def exact_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter calculates with bfloat16 and float8 as a GPU does."""
    patch_interpreter(monkeypatch)
