"""Typed, bounded reading of an untrusted `config.json`; every error names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenwire_service.errors import UnsupportedModelError

_REQUIRED: Any = object()


class ConfigFields:
    """A JSON object under the name it has in the file. A missing or null field takes the default, when there is one."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = values
        self._path = path

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def is_null(self, name: str) -> bool:
        """Whether the field is there and null."""
        return name in self._values and self._values[name] is None

    def nested(self) -> list[str]:
        """Names of the fields that are objects or lists themselves."""
        return [str(name) for name, value in self._values.items() if isinstance(value, (dict, list))]

    def raw(self, name: str) -> Any:
        """The value as it is, None when missing."""
        return self._values.get(name)

    def integer(self, name: str, default: int = _REQUIRED, *, low: int = 1, high: int) -> int:
        """An integer in [low, high]."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, f"must be an integer between {low} and {high}")
        return value

    def number(self, name: str, default: float = _REQUIRED) -> float:
        """A finite number above zero."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise self.error(name, "must be a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def text(self, name: str, default: str = _REQUIRED) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "must be a string")
        return value

    def mapping(self, name: str) -> ConfigFields | None:
        """A nested object, None when missing or empty."""
        value = self._values.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "must be an object")
        return ConfigFields(value, f"{self._path}{name}.")

    def listing(self, name: str) -> list[Any] | None:
        """A list, None when missing."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, list):
            raise self.error(name, "must be a list")
        return value

    def error(self, name: str, problem: str) -> UnsupportedModelError:
        """The error to raise about field `name`."""
        found = "is missing" if not self.has(name) else f"is {str(self._values.get(name))[:80]!r}"
        return UnsupportedModelError(f"config.json: {self._path}{name[:80]} {found}; it {problem}")

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.error(name, "is required")
        return default
