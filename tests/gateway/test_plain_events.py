"""Events read without protobuf are what protobuf reads."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tokenwire.v1 import text_generation_pb2 as text
from tokenwire.v1 import types_pb2 as types
from tokenwire_gateway.plain import EventReader

KINDS: tuple[tuple[Any, str], ...] = ((text.GenerateStreamResponse, "delta"), (text.ChatStreamResponse, "content"))


def check(kind: Any, field: str, raw: bytes) -> bool:
    """Whether it was read without protobuf, which must be the same or the same failure."""
    try:
        expected = kind.FromString(raw)
    except DecodeError:
        with pytest.raises((DecodeError, UnicodeDecodeError)):
            EventReader(kind, field)(raw)
        return False
    made = EventReader(kind, field)(raw)
    if isinstance(made, str):
        count = getattr(expected, field).token_count
        assert expected == kind(**{field: text.TextDelta(text=made, token_count=count)})
        return True
    assert made == expected
    return False


@given(said=st.text(max_size=140), count=st.integers(0, 300), index=st.sampled_from([0, 0, 0, 1]))
def test_deltas(said: str, count: int, index: int) -> None:
    for kind, field in KINDS:
        delta = text.TextDelta(text=said, token_count=count, index=index)
        plain = check(kind, field, kind(**{field: delta}).SerializeToString())
        assert plain is (0 < len(said.encode()) < 124 and 0 < count < 128 and not index)


@given(said=st.text(min_size=1, max_size=20), raw=st.binary(max_size=12), at=st.integers(0, 40), cut=st.integers(0, 40))
def test_bytes_that_were_tampered_with(said: str, raw: bytes, at: int, cut: int) -> None:
    """Overwritten, cut off, and with fields added that nobody knows."""
    for kind, field in KINDS:
        good = kind(**{field: text.TextDelta(text=said, token_count=1)}).SerializeToString()
        for bad in (good[:at] + raw + good[at + len(raw) :], good[:at] + raw + good[at:], good[:cut], good + raw):
            check(kind, field, bad)


@given(raw=st.binary(max_size=40))
def test_any_bytes(raw: bytes) -> None:
    for kind, field in KINDS:
        check(kind, field, raw)


@pytest.mark.parametrize(
    "other",
    [
        {"token_ids": [5]},
        {"logprobs": types.TokenLogprobs(token_ids=[5])},
        {"usage": types.Usage(prompt_tokens=3)},
    ],
)
def test_a_delta_that_tells_more_is_a_message(other: dict[str, Any]) -> None:
    for kind, field in KINDS:
        assert not check(
            kind, field, kind(**{field: text.TextDelta(text="x", token_count=1, **other)}).SerializeToString()
        )


def test_other_events_are_messages() -> None:
    completed = text.GenerateStreamResponse(completed=text.StreamCompleted(usage=types.Usage(completion_tokens=3)))
    assert EventReader(text.GenerateStreamResponse, "delta")(completed.SerializeToString()) == completed
    assert EventReader(text.GenerateStreamResponse, "delta")(b"") == text.GenerateStreamResponse()
