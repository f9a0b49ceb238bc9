"""What goes wrong, as one value: built from the service's status, from a bad body, or by the gateway itself.

The two REST dialects render it: `openai/errors.py` and `tgi/errors.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import grpc

from tokenwire_client import errors as client

CLIENT_CLOSED_REQUEST = 499
DEFAULT_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: a proto path or the parameter's own name, and what to do about it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A failed request. `reason` is google.rpc.ErrorInfo.reason, or the gateway's own in the same spelling."""

    status: int
    reason: str
    message: str
    violations: tuple[Violation, ...] = ()
    retry_after_s: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def all_headers(self) -> dict[str, str]:
        """Response headers, Retry-After among them in whole seconds."""
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers


class GatewayError(Exception):
    """A request that ends with `problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def bad_field(name: str, description: str, reason: str = "INVALID_PARAMETER") -> GatewayError:
    """400 for the parameter `name`, which carries its REST name already."""
    return GatewayError(Problem(400, reason, description, (Violation(name, description),)))


def internal() -> Problem:
    """A fault of the gateway; the log has the rest."""
    return Problem(500, "INTERNAL", "The gateway failed; report it with the x-request-id of this response.")


_STATUS: Mapping[grpc.StatusCode, int] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: 400,
        grpc.StatusCode.OUT_OF_RANGE: 400,
        grpc.StatusCode.FAILED_PRECONDITION: 400,
        grpc.StatusCode.UNAUTHENTICATED: 401,
        grpc.StatusCode.PERMISSION_DENIED: 403,
        grpc.StatusCode.NOT_FOUND: 404,
        grpc.StatusCode.ABORTED: 409,
        grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
        grpc.StatusCode.CANCELLED: CLIENT_CLOSED_REQUEST,
        grpc.StatusCode.UNIMPLEMENTED: 501,
        grpc.StatusCode.UNAVAILABLE: 503,
        grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    }
)


def from_rpc(error: grpc.RpcError) -> GatewayError:
    """The problem a failed RPC stands for."""
    known = client.from_rpc_error(error)
    status = _STATUS.get(known.code, 500)
    retry_after = known.retry_after
    if status in (429, 503) and retry_after is None:
        retry_after = DEFAULT_RETRY_AFTER_S
    problem = Problem(
        status=status,
        reason=known.reason or known.code.name,
        message=known.message,
        violations=tuple(Violation(v.field, v.description) for v in known.violations),
        retry_after_s=retry_after,
        facts=known.metadata,
    )
    return GatewayError(_refined(problem, known))


def _refined(problem: Problem, error: client.TokenwireError) -> Problem:
    """What the status code alone does not tell."""
    if isinstance(error, client.ConstraintFailed):
        return replace(problem, status=422)
    if isinstance(error, client.MessageTooLarge):
        message = "The request, or its answer, is larger than the generation service takes; make it smaller."
        return replace(problem, status=413, reason="REQUEST_TOO_LARGE", message=message, retry_after_s=None)
    if not error.reason and isinstance(error, client.Unavailable):
        # gRPC's own text tells addresses and ports.
        return replace(problem, message="The generation service cannot be reached; try again shortly.")
    if not error.reason and problem.status == 500:
        return replace(
            problem, reason="INTERNAL", message="The generation service failed; report it with x-request-id."
        )
    return problem
