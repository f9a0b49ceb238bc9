"""Problems as OpenAI's error bodies."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson
from starlette.responses import Response

from tokenwire_gateway import names
from tokenwire_gateway.errors import Problem
from tokenwire_gateway.sse import frame

_TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        409: "conflict_error",
        429: "rate_limit_error",
        504: "timeout_error",
    }
)
_CODES: Mapping[str, str | None] = MappingProxyType(
    {
        "CREDENTIALS_INVALID": "invalid_api_key",
        "INVALID_PARAMETER": "invalid_value",
        "FEATURE_NOT_ENABLED": "unsupported_parameter",
    }
)


def error_body(problem: Problem, known: Mapping[str, str]) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    problem = names.renamed(problem, known)
    kind = _TYPES.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    param = problem.violations[0].field or None if problem.violations else None
    if problem.reason == "MODEL_NOT_FOUND":
        param = "model"
    code = _CODES.get(problem.reason, problem.reason.lower())
    return {"error": {"message": _message(problem), "type": kind, "param": param, "code": code}}


def _message(problem: Problem) -> str:
    facts = problem.facts
    if problem.reason == "CONTEXT_LENGTH_EXCEEDED" and {"promptTokens", "maxContext"} <= facts.keys():
        # Clients recognise OpenAI's wording.
        return f"This model's maximum context length is {facts['maxContext']} tokens. {problem.message}"
    return problem.message


def error_response(problem: Problem, known: Mapping[str, str]) -> Response:
    """The whole response."""
    body = orjson.dumps(error_body(problem, known))
    return Response(body, status_code=problem.status, headers=problem.all_headers(), media_type="application/json")


def error_frame(problem: Problem, known: Mapping[str, str]) -> bytes:
    """The error as a stream's last event."""
    return frame(error_body(problem, known))
