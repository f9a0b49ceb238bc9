"""The one tree of errors. Every failed call raises a leaf of it, built from the status and its google.rpc details."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    from tokenwire_client.results import ChatCompletion, Generation

DOMAIN = "tokenwire"

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing to change: a proto path such as `sampling.top_p` (or a feature's name) and what to do about it."""

    field: str
    description: str


class TokenwireError(Exception):
    """Base of every error a call raises.

    code: the gRPC status code.
    reason: google.rpc.ErrorInfo.reason, spelt as tokenwire.v1.ErrorReason without its prefix; empty when there is none.
    metadata: google.rpc.ErrorInfo.metadata, such as promptTokens.
    violations: the wrong fields, or the features that are off.
    retry_after: seconds after which the server suggests to try again; None when it suggests nothing.
    request_id: the x-request-id the call was made with.
    partial: for streams, what had arrived before the failure; None for other calls.
    """

    status_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    status_reason: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        request_id: str = "",
        partial: Generation | ChatCompletion | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.status_code if code is None else code
        self.reason = self.status_reason if reason is None else reason
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.request_id = request_id
        self.partial = partial

    def __str__(self) -> str:
        facts = [self.reason or self.code.name]
        if self.request_id:
            facts.append(f"request {self.request_id}")
        return f"{self.message} [{', '.join(facts)}]"


class BadRequest(TokenwireError):
    """The request must be changed; `violations` names the fields."""

    status_code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidParameter(BadRequest):
    """A field is wrong."""

    status_reason = "INVALID_PARAMETER"


class ContextLengthExceeded(BadRequest):
    """The prompt, or the prompt and max_tokens, exceed the model's context."""

    status_reason = "CONTEXT_LENGTH_EXCEEDED"

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt, when the server told."""
        return _number(self.metadata.get("promptTokens"))

    @property
    def max_context(self) -> int | None:
        """Tokens the context holds, when the server told."""
        return _number(self.metadata.get("maxContext"))


class InvalidConstraint(BadRequest):
    """A schema, regular expression or grammar does not compile."""

    status_reason = "INVALID_CONSTRAINT"


class FailedPrecondition(TokenwireError):
    """The request is valid, but this server or this output does not allow it."""

    status_code = grpc.StatusCode.FAILED_PRECONDITION


class FeatureNotEnabled(FailedPrecondition):
    """The field or RPC is not enabled on this server; `violations` names it."""

    status_reason = "FEATURE_NOT_ENABLED"


class ConstraintFailed(FailedPrecondition):
    """The output constraint could not be satisfied while generating."""

    status_reason = "CONSTRAINT_FAILED"


class NotFound(TokenwireError):
    """What was named does not exist."""

    status_code = grpc.StatusCode.NOT_FOUND


class ModelNotFound(NotFound):
    """No model or adapter of that name."""

    status_reason = "MODEL_NOT_FOUND"


class Unauthenticated(TokenwireError):
    """Credentials are missing or wrong."""

    status_code = grpc.StatusCode.UNAUTHENTICATED
    status_reason = "CREDENTIALS_INVALID"


class PermissionDenied(TokenwireError):
    """The caller may not do this."""

    status_code = grpc.StatusCode.PERMISSION_DENIED
    status_reason = "PERMISSION_DENIED"


class Overloaded(TokenwireError):
    """Later, here: the server has no room for this request now; see `retry_after`."""

    status_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class QueueFull(Overloaded):
    """The queue is full."""

    status_reason = "QUEUE_FULL"


class QueueTimeout(Overloaded):
    """max_queue_time passed before the request got a place."""

    status_reason = "QUEUE_TIMEOUT"


class Shed(Overloaded):
    """Dropped in favour of more important work."""

    status_reason = "SHED"


class RateLimited(Overloaded):
    """The caller's quota is used up."""

    status_reason = "RATE_LIMITED"


class MessageTooLarge(TokenwireError):
    """gRPC's own limit on the size of a message or of metadata, here or at the server. Never worth a retry."""

    status_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(TokenwireError):
    """The server cannot be reached or does not serve now."""

    status_code = grpc.StatusCode.UNAVAILABLE


class ModelLoading(Unavailable):
    """The model is still loading; `Client.wait_until_ready` waits for it."""

    status_reason = "MODEL_LOADING"


class Draining(Unavailable):
    """The server is shutting down; go to another one."""

    status_reason = "DRAINING"


class EngineDown(Unavailable):
    """The engine died or hangs and is being restarted."""

    status_reason = "ENGINE_DOWN"


class DeadlineExceeded(TokenwireError):
    """The call's timeout passed."""

    status_code = grpc.StatusCode.DEADLINE_EXCEEDED
    status_reason = "DEADLINE_EXCEEDED"


class Aborted(TokenwireError):
    """An operator ended the request."""

    status_code = grpc.StatusCode.ABORTED
    status_reason = "ABORTED_BY_OPERATOR"


class Internal(TokenwireError):
    """A fault of the server; report it with `request_id`."""

    status_code = grpc.StatusCode.INTERNAL
    status_reason = "ENGINE_FAILURE"


class Unimplemented(TokenwireError):
    """The server does not know the RPC."""

    status_code = grpc.StatusCode.UNIMPLEMENTED


class Cancelled(TokenwireError):
    """The call was cancelled: by `cancel()`, by closing the client, or by the server."""

    status_code = grpc.StatusCode.CANCELLED


_BY_REASON: Mapping[str, type[TokenwireError]] = MappingProxyType(
    {
        kind.status_reason: kind
        for kind in (
            InvalidParameter,
            ContextLengthExceeded,
            InvalidConstraint,
            FeatureNotEnabled,
            ConstraintFailed,
            ModelNotFound,
            Unauthenticated,
            PermissionDenied,
            QueueFull,
            QueueTimeout,
            Shed,
            RateLimited,
            ModelLoading,
            Draining,
            EngineDown,
            DeadlineExceeded,
            Aborted,
            Internal,
        )
    }
)
_BY_CODE: Mapping[grpc.StatusCode, type[TokenwireError]] = MappingProxyType(
    {
        kind.status_code: kind
        for kind in (
            BadRequest,
            FailedPrecondition,
            NotFound,
            Unauthenticated,
            PermissionDenied,
            Overloaded,
            Unavailable,
            DeadlineExceeded,
            Aborted,
            Internal,
            Unimplemented,
            Cancelled,
        )
    }
    | {grpc.StatusCode.UNKNOWN: Internal, grpc.StatusCode.DATA_LOSS: Internal}
)


def from_rpc_error(error: grpc.RpcError, request_id: str = "") -> TokenwireError:
    """The leaf of the tree that `error`, from either of grpc's APIs, stands for."""
    details = _details(error)
    info = _first(details, error_details_pb2.ErrorInfo)
    ours = info is not None and info.domain == DOMAIN
    reason = info.reason if info is not None and ours else ""
    kind = _kind(error.code(), reason, has_info=info is not None)
    return kind(
        error.details() or error.code().name,
        code=error.code(),
        reason=reason,
        metadata=dict(info.metadata) if info is not None else None,
        violations=tuple(_violations(details)),
        retry_after=_retry_after(details),
        request_id=request_id,
    )


def _kind(code: grpc.StatusCode, reason: str, *, has_info: bool) -> type[TokenwireError]:
    by_code = _BY_CODE.get(code, TokenwireError)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not has_info:
        return MessageTooLarge
    by_reason = _BY_REASON.get(reason, by_code)
    return by_reason if by_reason.status_code is code else by_code


def _details(error: grpc.RpcError) -> tuple[Any, ...]:
    try:
        status = _from_call(error)
    except (ValueError, DecodeError):
        # Details that contradict the status, or are damaged, tell nothing.
        return ()
    return () if status is None else tuple(status.details)


def _from_call(error: grpc.RpcError) -> status_pb2.Status | None:
    status: status_pb2.Status | None = rpc_status.from_call(error)  # type: ignore[no-untyped-call]
    return status


def _first(details: Sequence[Any], kind: type[_M]) -> _M | None:
    for detail in details:
        message = kind()
        if detail.Is(kind.DESCRIPTOR):
            try:
                detail.Unpack(message)
            except DecodeError:
                return None
            return message
    return None


def _violations(details: Sequence[Any]) -> Iterator[FieldViolation]:
    bad_request = _first(details, error_details_pb2.BadRequest)
    if bad_request is not None:
        for field in bad_request.field_violations:
            yield FieldViolation(field.field, field.description)
    precondition = _first(details, error_details_pb2.PreconditionFailure)
    if precondition is not None:
        for violation in precondition.violations:
            yield FieldViolation(violation.subject, violation.description)


def _retry_after(details: Sequence[Any]) -> float | None:
    info = _first(details, error_details_pb2.RetryInfo)
    if info is None:
        return None
    return max(0.0, float(info.retry_delay.seconds) + float(info.retry_delay.nanos) / 1e9)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
