"""Events put together as bytes are what protobuf makes of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.byte_tokenizer import byte_tokenizer
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire_service.core.params import LogprobsParams
from tokenwire_service.rpc.convert import plain_delta
from tokenwire_service.rpc.convert.plain_delta import PlainDelta, ReadyEvents
from tokenwire_service.rpc.convert.responses import ResponseWriter
from tokenwire_service.rpc.events import CandidateDelta, UsageSoFar
from tokenwire_service.rpc.plan import OutputPlan


@given(text=st.text(max_size=140), count=st.integers(0, 300))
def test_bytes_are_protobufs(text: str, count: int) -> None:
    for event, field in ((pb.GenerateStreamResponse, "delta"), (pb.ChatStreamResponse, "content")):
        message = event(**{field: pb.TextDelta(text=text, token_count=count)})  # type: ignore[operator]
        raw = PlainDelta(event, field).encode(text, count)
        short = 0 < len(text.encode()) < 124 and 0 < count < 128
        assert raw == (message.SerializeToString() if short else None)


def test_ready_events_are_what_is_made_of_the_tokens_text() -> None:
    tokenizer = byte_tokenizer()
    events = ReadyEvents(tokenizer, PlainDelta(pb.ChatStreamResponse, "content"))
    writer, told = ResponseWriter(OutputPlan(), tokenizer), 0
    for _ in range(2):
        for token_id in range(tokenizer.vocab_size + 2):
            text = tokenizer.own_text(token_id)
            made = None if text is None else writer.chat_event(CandidateDelta(0, text, (token_id,)))
            assert events[token_id] == made
            told += made is not None
    assert told >= 2 * 128


def test_ready_events_are_no_more_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_delta, "MAX_READY_EVENTS", 3)
    events = ReadyEvents(byte_tokenizer(), PlainDelta(pb.GenerateStreamResponse, "delta"))
    assert all(events[token_id] for token_id in range(97, 107))
    assert len(events) == 3


@pytest.mark.parametrize(
    ("output", "event", "plain"),
    [
        (OutputPlan(), CandidateDelta(0, "a", (1,)), True),
        (OutputPlan(), CandidateDelta(0, "", (1,)), False),
        (OutputPlan(), CandidateDelta(1, "a", (1,)), False),
        (OutputPlan(), CandidateDelta(0, "a" * 200, (1,)), False),
        (OutputPlan(), CandidateDelta(0, "a", (1,), usage=UsageSoFar(3, 0, 1)), False),
        (OutputPlan(text=False), CandidateDelta(0, "a", (1,)), False),
        (OutputPlan(token_ids=True), CandidateDelta(0, "a", (97,)), False),
        (OutputPlan(logprobs=LogprobsParams()), CandidateDelta(0, "a", ()), False),
    ],
)
def test_only_what_has_nothing_else_to_tell_is_plain(output: OutputPlan, event: CandidateDelta, plain: bool) -> None:
    writer = ResponseWriter(output, byte_tokenizer())
    made = writer.generate_event(event)
    assert isinstance(made, bytes) is plain
    message = pb.GenerateStreamResponse.FromString(made) if isinstance(made, bytes) else made
    said = writer.chat_event(event)
    chat = pb.ChatStreamResponse.FromString(said) if isinstance(said, bytes) else said
    assert message.delta == chat.content
    assert message.delta.index == event.index
    assert message.delta.text == (event.text if output.text else "")
    assert message.delta.token_count == len(event.token_ids)
    assert list(message.delta.token_ids) == (list(event.token_ids) if output.token_ids else [])
    assert message.delta.HasField("usage") is (event.usage is not None)
