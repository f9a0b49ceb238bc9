"""What a worker says of the type its weights are held in."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from tests.support.local_engine import TINY_LIMITS
from tokenwire_service.errors import ConfigError
from tokenwire_service.kernels._cpu_library import load_cpu_library
from tokenwire_service.runner.worker import Worker
from tokenwire_service.weights.progress import SilentProgress
from tokenwire_service.weights.resolved import ResolvedModel


def told(model: ResolvedModel, dtype: str, quantize: str, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """The type by the facts and by the log."""
    with caplog.at_level(logging.INFO, logger="tokenwire_service"):
        worker = Worker(model, dtype, replace(TINY_LIMITS, quantize=quantize), SilentProgress())
    (line,) = (message for message in caplog.messages if message.startswith("weights of"))
    return worker.facts.dtype, line.split(" held in ")[1].split()[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_without_native_kernels_it_is_float32_whatever_was_asked_for(
    tiny_model: ResolvedModel, dtype: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenwire_service.kernels.backend.load_cpu_library", lambda cache_dir: None)
    assert told(tiny_model, dtype, "none", caplog) == ("float32", "float32")


@pytest.mark.parametrize(
    ("dtype", "quantize", "held"),
    [("float16", "none", "float16"), ("bfloat16", "none", "bfloat16"), ("float16", "int8", "int8")],
)
def test_with_native_kernels_it_is_what_was_asked_for_or_what_it_was_quantized_to(
    tiny_model: ResolvedModel, dtype: str, quantize: str, held: str, caplog: pytest.LogCaptureFixture
) -> None:
    if load_cpu_library() is not None:
        assert told(tiny_model, dtype, quantize, caplog) == (held, held)
    elif quantize == "int8":
        with pytest.raises(ConfigError, match="install a C\\+\\+ compiler"):
            told(tiny_model, dtype, quantize, caplog)
    else:
        assert told(tiny_model, dtype, quantize, caplog) == ("float32", "float32")
