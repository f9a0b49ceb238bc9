"""Request models that refuse what they do not know, and their failures as problems with REST parameter names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from tokenwire_gateway.errors import GatewayError, Problem, Violation

MAX_VIOLATIONS = 16
_MAX_SHOWN = 100

# In JSON's words where pydantic's are Python's.
_WANTED: Mapping[str, str] = MappingProxyType(
    {
        "string_type": "must be a string",
        "int_type": "must be an integer",
        "float_type": "must be a number",
        "bool_type": "must be true or false",
        "list_type": "must be a list",
        "dict_type": "must be an object",
        "model_type": "must be an object",
        "greater_than_equal": "must be at least {ge}",
        "less_than_equal": "must be at most {le}",
    }
)

UInt32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class Shape(BaseModel):
    """A JSON object: no unknown fields, no conversions, finite numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def only(remedy: str, *neutral: Any) -> Any:
    """A field taken only where it asks for nothing: null or one of `neutral`. `remedy` says what to do otherwise."""

    def check(value: Any) -> Any:
        if value is None or any(type(value) is type(known) and value == known for known in neutral):
            return value
        raise PydanticCustomError("unsupported_parameter", "{remedy}", {"remedy": f"not supported; {remedy}"})

    schema = {"enum": [None, *neutral], "description": f"Not supported beyond these values: {remedy}."}
    return Annotated[Any, AfterValidator(check), WithJsonSchema(schema)]


_S = TypeVar("_S", bound=Shape)


def parse(shape: type[_S], body: dict[str, Any]) -> _S:
    """`body` as `shape`. Raises GatewayError 400 that names each wrong field."""
    try:
        return shape.model_validate(body)
    except ValidationError as error:
        details = error.errors(include_url=False)
    violations = tuple(Violation(_path(body, d), _description(d)) for d in details[:MAX_VIOLATIONS])
    message = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)
    raise GatewayError(Problem(400, _reason(details[0]), message, violations))


def _reason(detail: ErrorDetails) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return "UNKNOWN_PARAMETER"
        case "missing":
            return "MISSING_REQUIRED_PARAMETER"
        case "unsupported_parameter":
            return "UNSUPPORTED_PARAMETER"
        case kind if kind.endswith("_type"):
            return "INVALID_TYPE"
    return "INVALID_VALUE"


def _description(detail: ErrorDetails) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return "unknown field; remove it or check its spelling"
        case "missing":
            return "missing; it is required"
        case "unsupported_parameter" | "value_error":
            return detail["msg"].removeprefix("Value error, ")
    limits = detail.get("ctx", {})
    wanted = _WANTED.get(detail["type"], "").format_map(limits)
    wanted = wanted or detail["msg"].removeprefix("Input ").replace("should ", "must ", 1)
    shown = orjson.dumps(detail["input"], default=repr).decode()
    return f"{wanted}; given: {shown}" if len(shown) <= _MAX_SHOWN else wanted


def _path(body: dict[str, Any], detail: ErrorDetails) -> str:
    """The place of an error as callers write it: messages[0].content. Union branches are left out."""
    path = ""
    value: Any = body
    steps: Sequence[int | str] = detail["loc"]
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if isinstance(value, list) and isinstance(step, int) and step < len(value):
            path += f"[{step}]"
            value = value[step]
        elif isinstance(value, dict) and (step in value or (last and detail["type"] == "missing")):
            shown = str(step)[:_MAX_SHOWN]
            path += f".{shown}" if path else shown
            value = value.get(step)
    return path
