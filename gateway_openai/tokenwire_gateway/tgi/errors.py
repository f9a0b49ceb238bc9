"""Problems as TGI's error bodies, with TGI's statuses and words where TGI has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import orjson
from starlette.responses import Response

from tokenwire_gateway import names
from tokenwire_gateway.errors import GatewayError, Problem
from tokenwire_gateway.sse import frame

# Of the service's refusals of the request itself; a body that is not JSON stays 400, as TGI's framework has it.
_KINDS: Mapping[int, tuple[int, str, str]] = MappingProxyType(
    {
        400: (422, "validation", "Input validation error: {0}"),
        401: (401, "authentication", "{0}"),
        403: (403, "authentication", "{0}"),
        404: (404, "validation", "{0}"),
        405: (405, "validation", "{0}"),
        408: (408, "validation", "{0}"),
        409: (409, "generation", "Request failed during generation: {0}"),
        413: (413, "validation", "{0}"),
        415: (415, "validation", "{0}"),
        422: (424, "generation", "Request failed during generation: {0}"),
        429: (429, "overloaded", "Model is overloaded: {0}"),
        500: (424, "generation", "Request failed during generation: {0}"),
        501: (501, "generation", "{0}"),
        503: (503, "unavailable", "{0}"),
        504: (504, "timeout", "{0}"),
    }
)


def error_body(problem: Problem, known: Mapping[str, str] = names.TGI) -> tuple[int, dict[str, Any]]:
    """Status and `{"error", "error_type"}`."""
    problem = _in_tgi_words(names.renamed(problem, known))
    if problem.reason == "INVALID_JSON":
        return 400, {"error": problem.message, "error_type": "validation"}
    if problem.reason == "INCOMPLETE":
        return 500, {"error": "Incomplete generation stream", "error_type": "incomplete_generation_stream"}
    status, kind, message = _KINDS.get(problem.status, (problem.status, "generation", "{0}"))
    return status, {"error": message.format(problem.message), "error_type": kind}


def _in_tgi_words(problem: Problem) -> Problem:
    facts = problem.facts
    if problem.reason == "CONTEXT_LENGTH_EXCEEDED" and {"promptTokens", "maxTokens", "maxContext"} <= facts.keys():
        if facts["maxTokens"] == "0":
            message = f"`inputs` must have less than {facts['maxContext']} tokens. Given: {facts['promptTokens']}"
            return replace(problem, message=message)
        message = (
            f"`inputs` tokens + `max_new_tokens` must be <= {facts['maxContext']}. "
            f"Given: {facts['promptTokens']} `inputs` tokens and {facts['maxTokens']} `max_new_tokens`"
        )
        return replace(problem, message=message)
    if problem.reason == "MODEL_NOT_FOUND":
        return replace(problem, message=problem.message.replace("model:", "adapter_id:", 1))
    quoted = "; ".join(f"`{v.field}` {v.description}" if v.field else v.description for v in problem.violations)
    return replace(problem, message=quoted) if quoted else problem


def error_response(problem: Problem, known: Mapping[str, str]) -> Response:
    """The whole response."""
    status, body = error_body(problem, known)
    return Response(
        orjson.dumps(body), status_code=status, headers=problem.all_headers(), media_type="application/json"
    )


def error_frame(problem: Problem) -> bytes:
    """The error as a stream's last event."""
    return frame(error_body(problem)[1])


def refused(message: str) -> GatewayError:
    """TGI's validation error with exactly this message."""
    return GatewayError(Problem(400, "INVALID_PARAMETER", message))
