"""One table: every error has a row, every status carries what api.md promises and stays small."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenwire.v1 import types_pb2
from tokenwire_service import errors
from tokenwire_service.errors import FieldViolation, TokenwireError
from tokenwire_service.rpc.status import MAX_DETAILS_BYTES, MAX_VIOLATIONS, PUSHBACK_KEY, TABLE, RpcStatus, to_status


def leaves(base: type[TokenwireError] = TokenwireError) -> list[type[TokenwireError]]:
    below = base.__subclasses__()
    return [base] if not below else [leaf for child in below for leaf in leaves(child)]


def example(kind: type[TokenwireError]) -> TokenwireError:
    if issubclass(kind, errors.BadRequestError):
        return kind.at("sampling.top_p", "is 2; must be in (0, 1]", promptTokens="5")
    if kind is errors.FeatureNotEnabledError:
        return errors.FeatureNotEnabledError("tools", "leave it out")
    if kind is errors.ModelNotFoundError:
        return errors.ModelNotFoundError("nope", ["real"])
    return kind("the message", metadata={"generatedTokens": "7"}, retry_after_s=1.5)


def details_of(status: RpcStatus) -> tuple[status_pb2.Status, dict[str, object]]:
    rich = status_pb2.Status.FromString(dict(status.trailers)["grpc-status-details-bin"])
    kinds = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.PreconditionFailure,
        error_details_pb2.ResourceInfo,
        error_details_pb2.RetryInfo,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RequestInfo,
    )
    found: dict[str, object] = {}
    for detail in rich.details:
        message = next(kind() for kind in kinds if detail.Is(kind.DESCRIPTOR))
        detail.Unpack(message)
        assert type(message).__name__ not in found, "each detail type at most once"
        found[type(message).__name__] = message
    return rich, found


def test_every_leaf_has_a_row_and_nothing_else_has() -> None:
    assert set(TABLE) == set(leaves())


def test_reasons_are_the_contracts() -> None:
    values = types_pb2.ErrorReason.DESCRIPTOR.values
    names = {value.name.removeprefix("ERROR_REASON_") for value in values} - {"UNSPECIFIED"}
    assert {leaf.reason for leaf in leaves()} == names


EXTRA = {
    grpc.StatusCode.INVALID_ARGUMENT: "BadRequest",
    grpc.StatusCode.NOT_FOUND: "ResourceInfo",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RetryInfo",
    grpc.StatusCode.UNAVAILABLE: "RetryInfo",
}


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_a_status_says_reason_domain_and_request(kind: type[TokenwireError]) -> None:
    error = example(kind)
    status = to_status(error, "request-1")
    rich, found = details_of(status)
    info, request = found["ErrorInfo"], found["RequestInfo"]
    assert (rich.code, rich.message) == (status.code.value[0], status.message)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (kind.reason, "tokenwire", error.metadata)
    assert isinstance(request, error_details_pb2.RequestInfo)
    assert request.request_id == "request-1"
    assert EXTRA.get(status.code, "ErrorInfo") in found
    if status.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert dict(status.trailers)[PUSHBACK_KEY] == "1500"
    if isinstance(retry := found.get("RetryInfo"), error_details_pb2.RetryInfo):
        assert retry.retry_delay.ToTimedelta().total_seconds() == 1.5


def test_a_refused_feature_is_the_subject() -> None:
    failure = details_of(to_status(errors.FeatureNotEnabledError("tools", "leave it out")))[1]["PreconditionFailure"]
    assert isinstance(failure, error_details_pb2.PreconditionFailure)
    assert [violation.subject for violation in failure.violations] == ["tools"]


def test_violations_are_capped_and_counted() -> None:
    error = errors.InvalidParameterError([FieldViolation(f"f{i}", "is wrong") for i in range(50)])
    found = details_of(to_status(error))[1]
    bad, info = found["BadRequest"], found["ErrorInfo"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert [violation.field for violation in bad.field_violations] == [f"f{i}" for i in range(MAX_VIOLATIONS)]
    assert info.metadata["violations"] == "50"


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.text(max_size=400), st.text(max_size=4000)), min_size=1, max_size=40), st.text(max_size=3000)
)
def test_whatever_is_said_fits_the_trailers(found: list[tuple[str, str]], model: str) -> None:
    for error in (
        errors.InvalidParameterError([FieldViolation(field, text) for field, text in found]),
        errors.ModelNotFoundError(model, [model]),
        errors.FeatureNotEnabledError(model, model),
        errors.EngineFailureError(model, metadata={"a": model}),
    ):
        status = to_status(error, "r" * 128)
        rich, details = details_of(status)
        assert rich.ByteSize() <= MAX_DETAILS_BYTES
        assert "ErrorInfo" in details
        sizes = [
            1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
            for character in status.message
        ]
        assert sum(sizes) <= 1024
