"""Bad input at both doors of the running product: right status, field's name, remedy; and the server goes on."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.stack import Stack
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc

GENERATE = "/tokenwire.v1.TextGenerationService/Generate"


@pytest.fixture(scope="module")
def channel(stack: Stack) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(stack.grpc, options=[("grpc.max_send_message_length", -1)]) as opened:
        yield opened


def call(channel: grpc.Channel, request: pb.GenerateRequest | bytes) -> grpc.RpcError:
    """The error of one Generate call, sent as the bytes they are."""
    method = channel.unary_unary(
        GENERATE, request_serializer=None, response_deserializer=pb.GenerateResponse.FromString
    )
    payload = request if isinstance(request, bytes) else request.SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        method(payload, timeout=60)
    return caught.value


def details(error: grpc.RpcError) -> tuple[str, list[str]]:
    """ErrorInfo.reason and the violated fields."""
    status = rpc_status.from_call(error)
    assert status is not None, "no rich details"
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(bad)
    assert info.domain == "tokenwire"
    assert all(violation.description for violation in bad.field_violations)
    return info.reason, [violation.field for violation in bad.field_violations]


def request(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(**({"text": "x"} | fields))


BAD_GRPC = {
    "empty prompt": (request(text=""), "INVALID_PARAMETER", "text"),
    "no prompt": (pb.GenerateRequest(), "INVALID_PARAMETER", "prompt"),
    "prompt too long": (request(text="word " * 20_000), "CONTEXT_LENGTH_EXCEEDED", "text"),
    "max_tokens 0": (request(stopping={"max_tokens": 0}), "INVALID_PARAMETER", "stopping.max_tokens"),
    "temperature -1": (request(sampling={"temperature": -1}), "INVALID_PARAMETER", "sampling.temperature"),
    "top_p 2": (request(sampling={"top_p": 2}), "INVALID_PARAMETER", "sampling.top_p"),
    "NaN": (request(sampling={"temperature": float("nan")}), "INVALID_PARAMETER", "sampling.temperature"),
    "10,000 stop strings": (request(stopping={"stop": ["a"] * 10_000}), "INVALID_PARAMETER", "stopping.stop"),
    "invalid UTF-8": (b"\x12\x02\xff\xfe", "INVALID_PARAMETER", "text"),
    "unknown field": (request().SerializeToString() + b"\xca\x3e\x01x", "INVALID_PARAMETER", "1001"),
    "not protobuf": (b"\xff\xff\xff", "INVALID_PARAMETER", ""),
}


@pytest.mark.parametrize("case", BAD_GRPC)
def test_grpc_refuses(channel: grpc.Channel, case: str) -> None:
    bad, reason, field = BAD_GRPC[case]
    error = call(channel, bad)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    seen, fields = details(error)
    assert seen == reason
    assert any(field in name for name in fields) or field in error.details(), (fields, error.details())


def test_grpc_unknown_model(channel: grpc.Channel) -> None:
    error = call(channel, request(model="nope"))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert details(error)[0] == "MODEL_NOT_FOUND"
    assert "smollm2" in error.details().lower()


def test_grpc_fields_without_behaviour_are_refused_by_name(channel: grpc.Channel) -> None:
    error = call(channel, request(constraint={"regex": "a+"}))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert details(error)[0] == "FEATURE_NOT_ENABLED"
    assert "constraint" in error.details()


def test_grpc_100_mb(channel: grpc.Channel) -> None:
    error = call(channel, request(text="x" * 100_000_000))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rpc_status.from_call(error) is None


BAD_REST = {
    "empty prompt": ({"prompt": ""}, 400, "prompt"),
    "prompt too long": ({"prompt": "word " * 20_000}, 400, "prompt"),
    "max_tokens 0": ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
    "temperature -1": ({"prompt": "x", "temperature": -1}, 400, "temperature"),
    "top_p 2": ({"prompt": "x", "top_p": 2}, 400, "top_p"),
    "10,000 stop strings": ({"prompt": "x", "stop": ["a"] * 10_000}, 400, "stop"),
    "unknown field": ({"prompt": "x", "max_tokenz": 3}, 400, "max_tokenz"),
    "wrong type": ({"prompt": "x", "temperature": "hot"}, 400, "temperature"),
    "unknown model": ({"prompt": "x", "model": "nope"}, 404, "model"),
}


@pytest.mark.parametrize("case", BAD_REST)
def test_rest_refuses(stack: Stack, case: str) -> None:
    body, status, param = BAD_REST[case]
    answer = stack.http("/v1/completions", body)
    assert answer.status == status, answer.body
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]
    assert error["type"]


def test_rest_bytes_that_are_not_json(stack: Stack) -> None:
    for raw in (b'{"prompt": "\xff\xfe"}', b'{"prompt": "x", "temperature": NaN}', b"{", b"[]"):
        answer = stack.http("/v1/completions", raw=raw)
        assert answer.status == 400, (raw, answer)
        assert answer.json()["error"]["message"]


def test_rest_wrong_content_type(stack: Stack) -> None:
    answer = stack.http("/v1/completions", {"prompt": "x"}, headers={"Content-Type": "text/plain"})
    assert answer.status == 415
    assert "application/json" in answer.json()["error"]["message"]


def test_rest_100_mb(stack: Stack) -> None:
    try:
        answer = stack.http("/v1/completions", raw=b'{"prompt": "' + b"x" * 100_000_000 + b'"}')
    except OSError:
        return  # The server may close before it has read everything it was going to refuse.
    assert answer.status == 413
    assert json.loads(answer.body)["error"]["message"]


BAD_TGI = {
    "empty inputs": {"inputs": ""},
    "max_new_tokens 0": {"inputs": "x", "parameters": {"max_new_tokens": 0}},
    "temperature -1": {"inputs": "x", "parameters": {"temperature": -1}},
    "top_p 2": {"inputs": "x", "parameters": {"top_p": 2}},
    "10,000 stop strings": {"inputs": "x", "parameters": {"stop": ["a"] * 10_000}},
}


@pytest.mark.parametrize("case", BAD_TGI)
def test_tgi_refuses_in_its_own_shape(stack: Stack, case: str) -> None:
    answer = stack.http("/generate", BAD_TGI[case])
    assert answer.status == 422, answer.body
    body = answer.json()
    assert body["error_type"] == "validation"
    assert body["error"].startswith("Input validation error: ")


def test_the_server_goes_on(channel: grpc.Channel, stack: Stack) -> None:
    stub = pb_grpc.TextGenerationServiceStub(channel)
    good = request(text="One, two, three,", sampling={"temperature": 0}, stopping={"max_tokens": 4})
    assert "four" in stub.Generate(good, timeout=60).candidates[0].text
    assert stack.http("/health").status == 200
