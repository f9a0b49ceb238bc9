"""Log lines in the service's form: one human line or one JSON object a record."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_FIELDS = ("method", "route", "status", "request_id", "model", "failure", "duration_ms")


class HumanFormatter(logging.Formatter):
    """`2026-11-21T12:00:00.123Z INFO    tokenwire_gateway: message key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        # One record is one line: what it quotes from outside cannot forge another.
        text = f"{record.getMessage()}{extra}".replace("\r", "\\r").replace("\n", "\\n")
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {text}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what the record carries besides, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up(level: str, *, as_json: bool) -> None:
    """Send every log line of this process to standard error; other libraries' from WARNING on, unless debugging."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else HumanFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tokenwire_gateway").setLevel(level.upper())
    if level == "debug":
        logging.getLogger("uvicorn").setLevel(logging.DEBUG)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03d}Z"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name in _FIELDS if (value := getattr(record, name, "")) != ""}
