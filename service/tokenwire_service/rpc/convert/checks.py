"""Collects everything that is wrong with a request, so that a caller learns it in one answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sized

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from tokenwire_service.errors import FeatureNotEnabledError, FieldViolation, InvalidParameterError

MAX_DURATION_S = 315_576_000_000
_MAX_KEPT = 64
_SHOWN = 40


class Checks:
    """Violations and refused features of one request; `raise_if_any` ends it."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []
        self._refused: list[FeatureNotEnabledError] = []

    def wrong(self, field: str, remedy: str) -> None:
        """`field` must be changed as `remedy` says."""
        if len(self._violations) < _MAX_KEPT:
            self._violations.append(FieldViolation(field, remedy))

    def require(self, condition: bool, field: str, remedy: str) -> bool:
        """Note the violation unless `condition` holds; returns it."""
        if not condition:
            self.wrong(field, remedy)
        return condition

    def refuse(self, field: str, remedy: str) -> None:
        """`field` is valid, but its behaviour is off here."""
        self._refused.append(FeatureNotEnabledError(field, remedy))

    def raise_if_any(self) -> None:
        """Raises InvalidParameterError with all violations, else FeatureNotEnabledError for the first refused field."""
        if self._violations:
            raise InvalidParameterError(self._violations)
        if self._refused:
            raise self._refused[0]

    def number(
        self,
        message: Message,
        name: str,
        path: str,
        low: float,
        high: float,
        default: float,
        *,
        above: bool = False,
    ) -> float:
        """The optional float `name` in [low, high] (or (low, high] with `above`), or `default`."""
        if not message.HasField(name):
            return default
        value = float(getattr(message, name))
        fits = math.isfinite(value) and (low < value if above else low <= value) and value <= high
        bracket = "(" if above else "["
        self.require(fits, f"{path}.{name}", f"is {value:g}; must be in {bracket}{low:g}, {high:g}]")
        return value if fits else default

    def integer(self, message: Message, name: str, path: str, low: int, high: int | None, default: int) -> int:
        """The optional integer `name` in [low, high], or `default`; no upper limit when `high` is None."""
        if not message.HasField(name):
            return default
        value = int(getattr(message, name))
        fits = low <= value and (high is None or value <= high)
        limits = f"at least {low}" if high is None else f"in [{low}, {high}]"
        self.require(fits, f"{path}.{name}".lstrip("."), f"is {value}; must be {limits}")
        return value if fits else default

    def seconds(
        self, message: Message, name: str, path: str, *, least: float | None = None, most: float | None = None
    ) -> float | None:
        """The optional Duration `name` in seconds: in [least, most]; greater than 0 when `least` is None."""
        if not message.HasField(name):
            return None
        duration: Duration = getattr(message, name)
        field = f"{path}.{name}".lstrip(".")
        whole, nanos = duration.seconds, duration.nanos
        valid = abs(whole) <= MAX_DURATION_S and abs(nanos) < 1_000_000_000 and whole * nanos >= 0
        if not self.require(valid, field, "is no valid duration: seconds and nanos must be in range and of one sign"):
            return None
        value = whole + nanos / 1e9
        low = "greater than 0" if least is None else f"at least {least:g} s"
        high = "" if most is None else f" and at most {most:g} s"
        fits = (value > 0 if least is None else value >= least) and (most is None or value <= most)
        return value if self.require(fits, field, f"is {value:g} s; must be {low}{high}") else None

    def text(self, value: str, field: str, max_bytes: int) -> str:
        """`value`, at most `max_bytes` long in UTF-8."""
        size = len(value.encode())
        self.require(size <= max_bytes, field, f"has {size} bytes; at most {max_bytes} are taken")
        return value

    def count(self, items: Sized, field: str, most: int) -> bool:
        """Whether there are at most `most` items; notes the violation otherwise."""
        return self.require(len(items) <= most, field, f"has {len(items)} entries; at most {most} are taken")

    def token_ids(self, ids: Iterable[int], field: str, vocab_size: int, *, first: int = 0) -> None:
        """Every id is one of the vocabulary's; the first that is not is named. `ids` begins at index `first`."""
        for index, token_id in enumerate(ids, first):
            if token_id >= vocab_size:
                self.wrong(f"{field}[{index}]", f"is {token_id}; token ids must be less than {vocab_size}")
                return


def shown(text: str) -> str:
    """Text of a caller, short enough for a message and on one line."""
    cut = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return repr(cut)
