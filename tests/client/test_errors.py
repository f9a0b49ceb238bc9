"""Every status the contract knows becomes its own exception, with all it says."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

import tokenwire_client as tw
from tests.support.scripted_server import abort, fail, respond
from tokenwire.v1.text_generation_pb2 import GenerateResponse
from tokenwire.v1.types_pb2 import ErrorReason
from tokenwire_client.errors import TokenwireError

REASONS = {
    "INVALID_PARAMETER": (StatusCode.INVALID_ARGUMENT, tw.InvalidParameter),
    "CONTEXT_LENGTH_EXCEEDED": (StatusCode.INVALID_ARGUMENT, tw.ContextLengthExceeded),
    "INVALID_CONSTRAINT": (StatusCode.INVALID_ARGUMENT, tw.InvalidConstraint),
    "FEATURE_NOT_ENABLED": (StatusCode.FAILED_PRECONDITION, tw.FeatureNotEnabled),
    "CONSTRAINT_FAILED": (StatusCode.FAILED_PRECONDITION, tw.ConstraintFailed),
    "MODEL_NOT_FOUND": (StatusCode.NOT_FOUND, tw.ModelNotFound),
    "CREDENTIALS_INVALID": (StatusCode.UNAUTHENTICATED, tw.Unauthenticated),
    "PERMISSION_DENIED": (StatusCode.PERMISSION_DENIED, tw.PermissionDenied),
    "QUEUE_FULL": (StatusCode.RESOURCE_EXHAUSTED, tw.QueueFull),
    "QUEUE_TIMEOUT": (StatusCode.RESOURCE_EXHAUSTED, tw.QueueTimeout),
    "SHED": (StatusCode.RESOURCE_EXHAUSTED, tw.Shed),
    "RATE_LIMITED": (StatusCode.RESOURCE_EXHAUSTED, tw.RateLimited),
    "MODEL_LOADING": (StatusCode.UNAVAILABLE, tw.ModelLoading),
    "DRAINING": (StatusCode.UNAVAILABLE, tw.Draining),
    "ENGINE_DOWN": (StatusCode.UNAVAILABLE, tw.EngineDown),
    "DEADLINE_EXCEEDED": (StatusCode.DEADLINE_EXCEEDED, tw.DeadlineExceeded),
    "ABORTED_BY_OPERATOR": (StatusCode.ABORTED, tw.Aborted),
    "ENGINE_FAILURE": (StatusCode.INTERNAL, tw.Internal),
}
CODES = {
    StatusCode.INVALID_ARGUMENT: tw.BadRequest,
    StatusCode.FAILED_PRECONDITION: tw.FailedPrecondition,
    StatusCode.NOT_FOUND: tw.NotFound,
    StatusCode.UNAUTHENTICATED: tw.Unauthenticated,
    StatusCode.PERMISSION_DENIED: tw.PermissionDenied,
    StatusCode.RESOURCE_EXHAUSTED: tw.MessageTooLarge,
    StatusCode.UNAVAILABLE: tw.Unavailable,
    StatusCode.DEADLINE_EXCEEDED: tw.DeadlineExceeded,
    StatusCode.ABORTED: tw.Aborted,
    StatusCode.INTERNAL: tw.Internal,
    StatusCode.UNKNOWN: tw.Internal,
    StatusCode.DATA_LOSS: tw.Internal,
    StatusCode.UNIMPLEMENTED: tw.Unimplemented,
    StatusCode.CANCELLED: tw.Cancelled,
    StatusCode.OUT_OF_RANGE: TokenwireError,
}


def test_every_reason_of_the_contract_is_known() -> None:
    assert set(REASONS) == {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]}


@pytest.mark.parametrize("reason", REASONS)
async def test_a_reason_becomes_its_exception(server, connect, reason) -> None:
    code, kind = REASONS[reason]
    server.script("Generate", fail(code, reason, message="Mind the gap.", metadata={"k": "v"}))
    client = connect(server.target, max_retries=0)
    with pytest.raises(tw.TokenwireError) as caught:
        await client("generate", "hi", request_id="r-1")
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, error.message) == (code, reason, "Mind the gap.")
    assert error.metadata == {"k": "v"}
    assert error.request_id == "r-1"
    assert error.retry_after is None
    assert error.partial is None
    assert str(error) == f"Mind the gap. [{reason}, request r-1]"


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
async def test_a_bare_status_becomes_the_exception_of_its_code(server, connect, code) -> None:
    server.script("Generate", fail(code))
    with pytest.raises(tw.TokenwireError) as caught:
        await connect(server.target, max_retries=0)("generate", "hi")
    assert type(caught.value) is CODES[code]
    assert (caught.value.code, caught.value.reason) == (code, "")


async def test_wrong_fields_are_listed(server, connect) -> None:
    fields = error_details_pb2.BadRequest()
    fields.field_violations.add(field="sampling.top_p", description="must be in (0, 1]")
    fields.field_violations.add(field="stopping.stop[3]", description="must not be empty")
    server.script("Chat", fail(StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER", details=(fields,)))
    with pytest.raises(tw.InvalidParameter) as caught:
        await connect(server.target)("chat", [tw.user("hi")])
    assert caught.value.violations == (
        tw.FieldViolation("sampling.top_p", "must be in (0, 1]"),
        tw.FieldViolation("stopping.stop[3]", "must not be empty"),
    )
    assert len(server.attempts["Chat"]) == 1


async def test_a_feature_that_is_off_is_named(server, connect) -> None:
    off = error_details_pb2.PreconditionFailure()
    off.violations.add(type="FEATURE", subject="constraint.regex", description="start the server with --grammar")
    server.script("Generate", fail(StatusCode.FAILED_PRECONDITION, "FEATURE_NOT_ENABLED", details=(off,)))
    with pytest.raises(tw.FeatureNotEnabled) as caught:
        await connect(server.target)("generate", "hi")
    assert caught.value.violations == (tw.FieldViolation("constraint.regex", "start the server with --grammar"),)


async def test_the_size_of_the_context_is_told(server, connect) -> None:
    facts = {"promptTokens": "9000", "maxContext": "8192"}
    server.script("Generate", fail(StatusCode.INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED", metadata=facts))
    with pytest.raises(tw.ContextLengthExceeded) as caught:
        await connect(server.target)("generate", "hi")
    assert (caught.value.prompt_tokens, caught.value.max_context) == (9000, 8192)


async def test_reasons_of_another_domain_are_not_ours(server, connect) -> None:
    server.script("Generate", fail(StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", domain="proxy.example"))
    with pytest.raises(tw.Overloaded) as caught:
        await connect(server.target)("generate", "hi")
    assert type(caught.value) is tw.Overloaded
    assert caught.value.reason == ""


async def test_a_reason_that_contradicts_its_code_is_not_believed(server, connect) -> None:
    server.script("Generate", fail(StatusCode.INTERNAL, "MODEL_NOT_FOUND"))
    with pytest.raises(tw.Internal):
        await connect(server.target)("generate", "hi")


@pytest.mark.parametrize(
    "details",
    [
        b"\xff\xff\xff",
        status_pb2.Status(code=5, message="other").SerializeToString(),
        status_pb2.Status(
            code=13, message="no", details=[{"type_url": "x/google.rpc.ErrorInfo", "value": b"\xff\xff"}]
        ).SerializeToString(),
    ],
    ids=["not a status", "another status", "a broken detail"],
)
async def test_damaged_details_leave_the_plain_status(server, connect, details) -> None:
    server.script("Generate", abort(StatusCode.INTERNAL, "no", (("grpc-status-details-bin", details),)))
    with pytest.raises(tw.Internal, match="no") as caught:
        await connect(server.target)("generate", "hi")
    assert caught.value.reason == ""


async def test_a_response_over_the_limit_is_not_asked_for_again(server, connect) -> None:
    response = GenerateResponse()
    response.candidates.add(text="x" * 2000)
    server.script("Generate", respond(response))
    client = connect(server.target, channel_options=[("grpc.max_receive_message_length", 1000)])
    with pytest.raises(tw.MessageTooLarge):
        await client("generate", "hi")
    assert len(server.attempts["Generate"]) == 1
