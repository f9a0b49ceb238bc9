from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from tests.support.interpreter_bf16 import patch_interpreter
from tests.support.kernel_backends import available_backends
from tests.support.triton_device import DEVICE
from tokenwire_service.kernels.backend import Backend


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backend]:
    return available_backends(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(autouse=True)
def on_the_kernels_device() -> Iterator[None]:
    """What a test makes, it makes where its kernels run."""
    with DEVICE if DEVICE.type != "cpu" else nullcontext():
        yield


@pytest.fixture
def exact_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter calculates with bfloat16 and float8 as a GPU does."""
    if DEVICE.type == "cpu":
        patch_interpreter(monkeypatch)
