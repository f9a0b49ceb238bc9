"""Log records as lines."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from tokenwire_service.observability.logging import configure_logging


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def logged(json_output: bool, level: str = "info") -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    configure_logging(level, json_output, stream)
    return logging.getLogger("tokenwire_service.app"), stream


def test_a_human_line() -> None:
    log, stream = logged(json_output=False)
    log.info("engine %s", "ready", extra={"num_blocks": 7})
    line = stream.getvalue()
    assert line.endswith("Z INFO    tokenwire_service.app: engine ready num_blocks=7\n")


def test_a_message_cannot_forge_another_line() -> None:
    log, stream = logged(json_output=False)
    log.info("from outside: %s", "a\r\n2026 ERROR root: forged", extra={"user": "b\nc"})
    assert stream.getvalue().count("\n") == 1


def test_json_lines_carry_the_exception_and_the_extra() -> None:
    log, stream = logged(json_output=True)
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed", extra={"request_id": "r1"})
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry["level"] == "error"
    assert entry["logger"] == "tokenwire_service.app"
    assert entry["message"] == "it failed"
    assert entry["request_id"] == "r1"
    assert "ValueError: broken" in entry["exception"]
    assert entry["time"].endswith("Z")


def test_the_level_is_ours_and_other_libraries_are_quiet() -> None:
    log, stream = logged(json_output=False, level="debug")
    log.debug("mine")
    logging.getLogger("urllib3").info("not mine")
    logging.getLogger("urllib3").warning("a warning of a library")
    assert "mine" in stream.getvalue()
    assert "not mine" not in stream.getvalue()
    assert "a warning of a library" in stream.getvalue()


def test_configuring_twice_does_not_write_twice() -> None:
    logged(json_output=False)
    log, stream = logged(json_output=False)
    log.info("once")
    assert stream.getvalue().count("once") == 1
