"""Bytes that are not the contract's: the fault is named by its path."""

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import tokenization_pb2
from tokenwire_service.rpc.wire import MAX_FIELDS_WALKED, Malformed, parse

BAD = b"\xff\xfe"


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    assert number < 2048
    assert len(payload) < 128
    tag = number << 3 | 2
    head = bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])
    return head + bytes([len(payload)]) + payload


INVALID_UTF8 = {
    "text": (pb.GenerateRequest, field(2, BAD)),
    "model": (pb.GenerateRequest, field(1, b"ok\xc3")),
    "user": (pb.GenerateRequest, field(11, BAD)),
    "labels.key": (pb.GenerateRequest, field(12, field(1, BAD) + field(2, b"v"))),
    "labels.value": (pb.GenerateRequest, field(12, field(1, b"k") + field(2, BAD))),
    "stopping.stop[1]": (pb.GenerateRequest, field(5, field(3, b"ok") + field(3, BAD))),
    "cache.salt": (pb.GenerateRequest, field(9, field(1, BAD))),
    "constraint.json_schema.schema": (pb.GenerateRequest, field(6, field(1, field(1, BAD)))),
    "messages[1].content[0].text": (pb.ChatRequest, field(2, b"") + field(2, field(2, field(1, BAD)))),
    "messages[0].tool_calls[0].arguments": (pb.ChatRequest, field(2, field(4, field(3, BAD)))),
    "template_args_json": (pb.ChatRequest, field(16, BAD)),
    "chat.messages[0].name": (tokenization_pb2.TokenizeRequest, field(3, field(1, field(3, BAD)))),
}


@pytest.mark.parametrize("path", INVALID_UTF8)
def test_invalid_utf8_is_named(path: str) -> None:
    message, raw = INVALID_UTF8[path]
    found = parse(raw, message)
    assert isinstance(found, Malformed)
    assert [violation.field for violation in found.violations] == [path]
    assert "UTF-8" in found.violations[0].description


UNKNOWN = {
    "1001": field(1001, b"x"),
    "sampling.99": field(4, field(99, b"x")),
    "stopping.77": field(5, b"\xe8\x04\x05"),
    "sampling.temperature": field(4, b"\x08\x01"),
}


@pytest.mark.parametrize("path", UNKNOWN)
def test_unknown_fields_are_named(path: str) -> None:
    found = parse(pb.GenerateRequest(text="x").SerializeToString() + UNKNOWN[path], pb.GenerateRequest)
    assert isinstance(found, Malformed)
    assert [violation.field for violation in found.violations] == [path]


def test_every_unknown_field_is_named() -> None:
    found = parse(field(900, b"x") + field(4, field(99, b"x")) + field(901, b"y"), pb.GenerateRequest)
    assert isinstance(found, Malformed)
    assert [violation.field for violation in found.violations] == ["900", "sampling.99", "901"]


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"\x12\x09ab", "text"),
        (b"\x22\x05\x0d\x00", "sampling"),
        (b"\xff\xff\xff", ""),
        (b"\x00\x00", ""),
        (b"\x13", "text"),
    ],
)
def test_damaged_bytes_are_refused(raw: bytes, path: str) -> None:
    found = parse(raw, pb.GenerateRequest)
    assert isinstance(found, Malformed)
    assert found.violations[0].field == path
    assert found.violations[0].description


def test_walking_ends_however_long_the_message() -> None:
    found = parse(b"\x22\x00" * (MAX_FIELDS_WALKED + 10) + field(2, BAD), pb.GenerateRequest)
    assert isinstance(found, Malformed)
    assert found.violations[0].field == ""


def test_good_messages_pass_untouched() -> None:
    sent = pb.ChatRequest(
        messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="hé 🙂")])], labels={"a": "b"}
    )
    sent.sampling.logit_bias[7] = 1.5
    sent.stopping.time_limit.seconds = 3
    assert parse(sent.SerializeToString(), pb.ChatRequest) == sent


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_named_fault(raw: bytes) -> None:
    for kind in (pb.GenerateRequest, pb.ChatRequest, tokenization_pb2.TokenizeRequest):
        found = parse(raw, kind)
        assert isinstance(found, Message) or (found.violations and all(v.description for v in found.violations))
