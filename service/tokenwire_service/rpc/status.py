"""The one table from domain errors to gRPC statuses with google.rpc details."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tokenwire_service import errors
from tokenwire_service.errors import BadRequestError, FeatureNotEnabledError, ModelNotFoundError, TokenwireError

DOMAIN = "tokenwire"
MAX_DETAILS_BYTES = 4096
MAX_VIOLATIONS = 16
MAX_MESSAGE_BYTES = 1024
"""Of the status message as it travels, percent-encoded."""
_MAX_FIELD_CHARS = 128
_MAX_TEXT_CHARS = 256
PUSHBACK_KEY = "grpc-retry-pushback-ms"

Detail = Callable[[Any], Message]


def _bad_request(error: BadRequestError) -> Message:
    shown = [
        (_cut(v.field, _MAX_FIELD_CHARS), _cut(v.description, _MAX_TEXT_CHARS))
        for v in error.violations[:MAX_VIOLATIONS]
    ]
    violation = error_details_pb2.BadRequest.FieldViolation
    return error_details_pb2.BadRequest(field_violations=[violation(field=f, description=d) for f, d in shown])


def _precondition(error: FeatureNotEnabledError) -> Message:
    violation = error_details_pb2.PreconditionFailure.Violation(
        type=error.reason,
        subject=_cut(error.feature, _MAX_FIELD_CHARS),
        description=_cut(error.description, _MAX_TEXT_CHARS),
    )
    return error_details_pb2.PreconditionFailure(violations=[violation])


def _resource(error: ModelNotFoundError) -> Message:
    return error_details_pb2.ResourceInfo(
        resource_type="tokenwire.v1.Model",
        resource_name=_cut(error.model, _MAX_TEXT_CHARS),
        description="not served here",
    )


def _retry(error: TokenwireError) -> Message:
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int((error.retry_after_s or 0.0) * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _quota(error: TokenwireError) -> Message:
    violation = error_details_pb2.QuotaFailure.Violation(
        subject=_cut(error.metadata.get("subject", "caller"), _MAX_FIELD_CHARS),
        description=_cut(error.message, _MAX_TEXT_CHARS),
    )
    return error_details_pb2.QuotaFailure(violations=[violation])


@dataclass(frozen=True, slots=True)
class Row:
    """What one class of errors becomes, ErrorInfo and RequestInfo aside."""

    code: grpc.StatusCode
    details: tuple[Detail, ...] = ()
    pushback: bool = False
    """Sends grpc-retry-pushback-ms, which delays the channel's own retries."""


_Code = grpc.StatusCode
TABLE: Mapping[type[TokenwireError], Row] = MappingProxyType(
    {
        errors.InvalidParameterError: Row(_Code.INVALID_ARGUMENT, (_bad_request,)),
        errors.ContextLengthExceededError: Row(_Code.INVALID_ARGUMENT, (_bad_request,)),
        errors.InvalidConstraintError: Row(_Code.INVALID_ARGUMENT, (_bad_request,)),
        errors.FeatureNotEnabledError: Row(_Code.FAILED_PRECONDITION, (_precondition,)),
        errors.ConstraintFailedError: Row(_Code.FAILED_PRECONDITION),
        errors.ModelNotFoundError: Row(_Code.NOT_FOUND, (_resource,)),
        errors.UnauthenticatedError: Row(_Code.UNAUTHENTICATED),
        errors.PermissionDeniedError: Row(_Code.PERMISSION_DENIED),
        errors.QueueFullError: Row(_Code.RESOURCE_EXHAUSTED, (_retry,), pushback=True),
        errors.QueueTimeoutError: Row(_Code.RESOURCE_EXHAUSTED, (_retry,), pushback=True),
        errors.ShedError: Row(_Code.RESOURCE_EXHAUSTED, (_retry,), pushback=True),
        errors.RateLimitedError: Row(_Code.RESOURCE_EXHAUSTED, (_retry, _quota), pushback=True),
        errors.ModelLoadingError: Row(_Code.UNAVAILABLE, (_retry,)),
        errors.DrainingError: Row(_Code.UNAVAILABLE, (_retry,)),
        errors.EngineDownError: Row(_Code.UNAVAILABLE, (_retry,)),
        errors.DeadlineExceededError: Row(_Code.DEADLINE_EXCEEDED),
        errors.AbortedByOperatorError: Row(_Code.ABORTED),
        errors.EngineFailureError: Row(_Code.INTERNAL),
    }
)


@dataclass(frozen=True, slots=True)
class RpcStatus:
    """A status ready for `context.abort`."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def to_status(error: TokenwireError, request_id: str = "") -> RpcStatus:
    """Render `error`: status message, details below 4 KiB, trailers."""
    row = TABLE[type(error)]
    message = _short(error.message)
    rich = status_pb2.Status(code=row.code.value[0], message=message)
    for detail in _details(error, row, request_id):
        rich.details.add().Pack(detail)
        if rich.ByteSize() > MAX_DETAILS_BYTES:
            _shrink_last(rich)
    trailers = tuple(rpc_status.to_status(rich).trailing_metadata)  # type: ignore[no-untyped-call]
    if row.pushback and error.retry_after_s is not None:
        trailers += ((PUSHBACK_KEY, str(math.ceil(error.retry_after_s * 1000))),)
    return RpcStatus(row.code, message, trailers)


def _details(error: TokenwireError, row: Row, request_id: str) -> Iterator[Message]:
    metadata = {key: _cut(value, _MAX_TEXT_CHARS) for key, value in error.metadata.items()}
    if isinstance(error, BadRequestError) and len(error.violations) > MAX_VIOLATIONS:
        metadata["violations"] = str(len(error.violations))
    yield error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    if request_id:
        yield error_details_pb2.RequestInfo(request_id=request_id)
    for build in row.details:
        yield build(error)


def _shrink_last(rich: status_pb2.Status) -> None:
    """Drop violations from the end of the last detail until everything fits, and the detail itself if it never does."""
    bad_request = error_details_pb2.BadRequest()
    if rich.details[-1].Unpack(bad_request):
        while bad_request.field_violations and rich.ByteSize() > MAX_DETAILS_BYTES:
            del bad_request.field_violations[-1]
            rich.details[-1].Pack(bad_request)
    if rich.ByteSize() > MAX_DETAILS_BYTES:
        del rich.details[-1]


def _short(message: str) -> str:
    """The longest start of `message` whose percent-encoded form, which is what travels, keeps the limit."""
    message = _cut(message, len(message))
    room = MAX_MESSAGE_BYTES - _encoded_size("…")
    for index, character in enumerate(message):
        room -= _encoded_size(character)
        if room < 0:
            return message[:index] + "…"
    return message


def _cut(text: str, most: int) -> str:
    """The first `most` characters, lone surrogates (which no protobuf string holds) replaced."""
    return text[:most].encode(errors="replace").decode()


def _encoded_size(character: str) -> int:
    return 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
