"""However an answer is cut into events, they add up to it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tokenwire.v1.text_generation_pb2 import (
    ROLE_ASSISTANT,
    ChatResponse,
    ChatStreamResponse,
    GenerateResponse,
    GenerateStreamResponse,
    PromptDetails,
    TextDelta,
)
from tokenwire.v1.types_pb2 import TokenLogprobs
from tokenwire_client.accumulate import ChatAccumulator, GenerateAccumulator

texts = st.text(max_size=6)


@st.composite
def logprobs(draw: st.DrawFn, ids: list[int]) -> TokenLogprobs:
    columns = TokenLogprobs(token_ids=ids, logprobs=[-float(i) for i in ids], ranks=[i + 1 for i in ids])
    columns.token_bytes.extend(bytes([i]) for i in ids)
    columns.special.extend(i % 2 == 0 for i in ids)
    if draw(st.booleans()):
        for i in ids:
            columns.alternatives.add(token_ids=[i, i + 1], logprobs=[-1.0, -2.0], ranks=[1, 2])
    return columns


@st.composite
def deltas(draw: st.DrawFn, index: int, *, with_tokens: bool) -> list[TextDelta]:
    made = []
    for text in draw(st.lists(texts, max_size=5)):
        ids = draw(st.lists(st.integers(0, 200), max_size=3))
        delta = TextDelta(index=index, text=text, token_count=len(ids))
        if with_tokens:
            delta.token_ids.extend(ids)
            delta.logprobs.CopyFrom(draw(logprobs(ids)))
        made.append(delta)
    return made


def add_tokens(candidate: Any, delta: TextDelta) -> None:
    candidate.token_count += delta.token_count
    candidate.token_ids.extend(delta.token_ids)
    if delta.HasField("logprobs"):
        candidate.logprobs.MergeFrom(delta.logprobs)


def interleave(draw: st.DrawFn, queues: list[list[Any]]) -> list[Any]:
    """The items of all queues, each queue in its own order."""
    merged = []
    while any(queues):
        merged.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    return merged


def fill_common(draw: st.DrawFn, response: Any, kind: type[Any]) -> tuple[list[Any], list[Any]]:
    """Facts and prompt of a response, and its first and last events."""
    response.info.response_id = draw(st.text("abc", min_size=1, max_size=4))
    response.usage.prompt_tokens = 5
    response.usage.cached_prompt_tokens = draw(st.integers(0, 5))
    response.usage.completion_tokens = 9
    response.timing.preemptions = 1
    first, last = [kind()], [kind()]
    first[0].started.info.CopyFrom(response.info)
    first[0].started.prompt_tokens = 5
    first[0].started.cached_prompt_tokens = response.usage.cached_prompt_tokens
    if draw(st.booleans()):
        ids = draw(st.lists(st.integers(0, 200), min_size=1, max_size=6))
        response.prompt.CopyFrom(PromptDetails(token_ids=ids, logprobs=draw(logprobs([]))))
        cut = draw(st.integers(0, len(ids)))
        for offset, part in ((0, ids[:cut]), (cut, ids[cut:])):
            columns = draw(logprobs(part))
            response.prompt.logprobs.MergeFrom(columns)
            first.append(kind())
            first[-1].prompt.CopyFrom(PromptDetails(offset=offset, token_ids=part, logprobs=columns))
    last[0].completed.usage.CopyFrom(response.usage)
    last[0].completed.timing.CopyFrom(response.timing)
    return first, last


@st.composite
def generations(draw: st.DrawFn) -> tuple[GenerateResponse, list[GenerateStreamResponse]]:
    response = GenerateResponse()
    first, last = fill_common(draw, response, GenerateStreamResponse)
    with_tokens = draw(st.booleans())
    queues = []
    for index in range(draw(st.integers(1, 3))):
        candidate = response.candidates.add(index=index)
        queue = []
        for delta in draw(deltas(index, with_tokens=with_tokens)):
            candidate.text += delta.text
            add_tokens(candidate, delta)
            queue.append(GenerateStreamResponse(delta=delta))
        candidate.finish.reason = draw(st.integers(1, 6))
        ended = GenerateStreamResponse()
        ended.candidate_finished.index = index
        ended.candidate_finished.finish.CopyFrom(candidate.finish)
        queues.append([*queue, ended])
    return response, first + interleave(draw, queues) + last


@st.composite
def chats(draw: st.DrawFn) -> tuple[ChatResponse, list[ChatStreamResponse]]:
    response = ChatResponse()
    first, last = fill_common(draw, response, ChatStreamResponse)
    with_tokens = draw(st.booleans())
    queues = []
    for index in range(draw(st.integers(1, 2))):
        candidate = response.candidates.add(index=index)
        queue = []
        reasoning = draw(deltas(index, with_tokens=with_tokens))
        content = draw(deltas(index, with_tokens=with_tokens))
        candidate.message.role = ROLE_ASSISTANT
        for name, parts in (("reasoning", reasoning), ("content", content)):
            for delta in parts:
                add_tokens(candidate, delta)
                queue.append(ChatStreamResponse(**{name: delta}))
        if text := "".join(delta.text for delta in reasoning):
            candidate.message.reasoning = text
        for number in range(draw(st.integers(0, 2))):
            call = candidate.message.tool_calls.add(id=f"c{number}", name="f")
            for piece_idx, piece in enumerate(draw(st.lists(texts, min_size=1, max_size=3))):
                call.arguments += piece
                candidate.token_count += 1
                event = ChatStreamResponse()
                event.tool_call.index = index
                event.tool_call.call_index = number
                event.tool_call.arguments = piece
                event.tool_call.token_count = 1
                if piece_idx == 0:
                    event.tool_call.id = call.id
                    event.tool_call.name = call.name
                queue.append(event)
        text = "".join(delta.text for delta in content)
        if text or not (candidate.message.reasoning or candidate.message.tool_calls):
            candidate.message.content.add(text=text)
        candidate.finish.reason = 1
        ended = ChatStreamResponse()
        ended.candidate_finished.index = index
        ended.candidate_finished.finish.reason = 1
        queues.append([*queue, ended])
    return response, first + interleave(draw, queues) + last


@given(generations())
def test_generate_events_add_up(case: tuple[GenerateResponse, list[GenerateStreamResponse]]) -> None:
    response, events = case
    accumulator = GenerateAccumulator()
    for event in events:
        assert not accumulator.completed
        accumulator.add(event)
    assert accumulator.completed
    assert accumulator.result().raw == response
    assert accumulator.result().raw == response


@given(chats())
def test_chat_events_add_up(case: tuple[ChatResponse, list[ChatStreamResponse]]) -> None:
    response, events = case
    accumulator = ChatAccumulator()
    for event in events:
        assert not accumulator.completed
        accumulator.add(event)
    assert accumulator.completed
    assert accumulator.result().raw == response


@given(generations(), st.data())
def test_pieces_of_text_add_up(
    case: tuple[GenerateResponse, list[GenerateStreamResponse]], data: st.DataObject
) -> None:
    response, events = case
    index = data.draw(st.sampled_from([candidate.index for candidate in response.candidates]))
    accumulator = GenerateAccumulator()
    assert "".join(accumulator.text(event, index) for event in events) == response.candidates[index].text


def test_usage_of_deltas_is_known_before_the_end() -> None:
    accumulator = GenerateAccumulator()
    event = GenerateStreamResponse()
    event.delta.token_count = 2
    event.delta.usage.prompt_tokens = 5
    event.delta.usage.completion_tokens = 7
    event.delta.usage.draft_tokens = 3
    accumulator.add(event)
    usage = accumulator.result().usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.draft_tokens) == (5, 7, 3)
