"""What a stream says, event by event, and that it is what the unary call says."""

import asyncio
import itertools
import math
from typing import Any

from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.fake_engine import FakeEngine, FakeStream
from tests.support.rpc import open_door, prompt, read, served_model
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import types_pb2
from tokenwire_service.core.events import FinishReason, TokenLogprob

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id or 0


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def row(value: float, *top: int) -> TokenLogprob:
    return TokenLogprob(value, 1, top, tuple(value - 1 for _ in top), tuple(range(1, len(top) + 1)))


class Play:
    """Plays one candidate's tokens in the groups given; `breaths` loop turns pass between groups."""

    def __init__(self, groups: list[list[int]], *, end: bool, breaths: int = 2) -> None:
        self._groups, self._end, self._breaths = groups, end, breaths

    async def __call__(self, stream: FakeStream) -> None:
        stream.admit(cached_prompt_tokens=2, queue_time_s=0.25)
        last = len(self._groups) - 1
        for number, group in enumerate(self._groups):
            for index in range(stream.request.num_candidates):
                if number < last:
                    stream.tokens(group, index=index)
                elif self._end:
                    stream.tokens([*group, END], index=index, finish=FinishReason.STOP, stop_token_id=END)
                else:
                    stream.tokens(group, index=index, finish=FinishReason.MAX_TOKENS)
            for _ in range(self._breaths):
                await asyncio.sleep(0)


PIECES = ["a", "he", "llo ", "é", "🙂", "e\u0301", "👩‍👩‍👧", "\n\n", "日本", "🇫🇷", "x", " "]


@st.composite
def plays(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    text = "".join(draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12)))
    # Bytes one by one cut characters anywhere; merged tokens are several bytes.
    ids = draw(st.sampled_from([list(text.encode()), encode(text)]))
    ids += draw(st.lists(st.sampled_from([0xF0, 0x9F, 0xC3, 65]), max_size=3))
    cuts = sorted(draw(st.sets(st.integers(1, len(ids)), max_size=6)) | {0, len(ids)})
    return [ids[a:b] for a, b in itertools.pairwise(cuts)], draw(st.integers(0, 3))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    play=plays(),
    stop=st.lists(st.sampled_from(["o ", "🙂", "\n\n", "e\u0301", "本"]), max_size=2, unique=True),
    include_stop=st.booleans(),
    min_tokens=st.sampled_from([0, 3]),
    min_tokens_per_event=st.sampled_from([1, 3]),
    end=st.booleans(),
)
async def test_concatenated_deltas_equal_the_unary_text(
    play: tuple[list[list[int]], int],
    stop: list[str],
    include_stop: bool,
    min_tokens: int,
    min_tokens_per_event: int,
    end: bool,
) -> None:
    groups, breaths = play
    fields: dict[str, Any] = {
        "stopping": {"stop": stop, "include_stop": include_stop, "max_tokens": 100, "min_tokens": min_tokens},
        "output": {"token_ids": True},
    }
    async with open_door(FakeEngine(Play(groups, end=end, breaths=breaths))) as door:
        whole = await door.generation.Generate(prompt(**fields))
        chat = pb.ChatRequest(messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="hi")])], **fields)
        whole_chat = await door.generation.Chat(chat)
        cut = {"min_tokens_per_event": min_tokens_per_event, "max_delay": Duration(seconds=10)}
        streamed = await read(door.generation.GenerateStream(prompt(stream=cut, **fields)))
        chat.stream.CopyFrom(types_pb2.StreamOptions(**cut))
        streamed_chat = await read(door.generation.ChatStream(chat))
    candidate = whole.candidates[0]
    ids = [token_id for group in groups for token_id in group]
    if not candidate.finish.stop:
        assert candidate.text == TOKENIZER.decode(ids)
    elif include_stop:
        assert candidate.text.endswith(candidate.finish.stop)
    assert streamed.text() == candidate.text == whole_chat.candidates[0].message.content[0].text
    assert streamed_chat.text(kind="content") == candidate.text
    assert streamed.token_ids() == list(candidate.token_ids) == streamed_chat.token_ids(kind="content")
    assert sum(delta.token_count for delta in streamed.of("delta")) == candidate.token_count == len(candidate.token_ids)
    [finished] = streamed.of("candidate_finished")
    assert finished.finish == candidate.finish == whole_chat.candidates[0].finish
    [completed] = streamed.of("completed")
    assert completed.usage == whole.usage
    assert whole.usage.completion_tokens == candidate.token_count


async def test_events_come_in_order_and_say_what_they_should() -> None:
    async with open_door(FakeEngine(Play([encode("hello "), encode("é")], end=True))) as door:
        call = door.generation.GenerateStream(prompt(sampling={"seed": -5}))
        streamed = await read(call)
        metadata = dict(await call.initial_metadata() or ())
    kinds = [event.WhichOneof("event") for event in streamed.events]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["candidate_finished", "completed"]
    [started], [finished], [completed] = (streamed.of(k) for k in ("started", "candidate_finished", "completed"))
    assert started.info.response_id.startswith("tw-")
    assert (started.info.model, started.info.seed) == ("bytes", -5)
    assert (started.prompt_tokens, started.cached_prompt_tokens) == (3, 2)
    assert started.queue_time.ToMilliseconds() == 250
    assert finished.finish == types_pb2.Finish(reason=types_pb2.FINISH_REASON_STOP, stop_token_id=END)
    assert completed.usage == types_pb2.Usage(prompt_tokens=3, cached_prompt_tokens=2, completion_tokens=5)
    assert completed.timing.total_time.ToNanoseconds() >= completed.timing.time_to_first_token.ToNanoseconds() > 0
    assert streamed.text() == "hello é"
    assert metadata["x-request-id"]
    assert metadata["x-tokenwire-instance"]


async def test_usage_tells_what_speculation_guessed_and_what_held() -> None:
    async def play(stream: FakeStream) -> None:
        stream.admit()
        stream.draft_tokens, stream.accepted_draft_tokens = 9, 2
        stream.tokens(encode("abc"), finish=FinishReason.MAX_TOKENS)

    async with open_door(FakeEngine(play)) as door:
        streamed = await read(door.generation.GenerateStream(prompt()))
        unary = await door.generation.Generate(prompt())
    (completed,) = streamed.of("completed")
    for usage in (completed.usage, unary.usage):
        assert (usage.draft_tokens, usage.accepted_draft_tokens, usage.completion_tokens) == (9, 2, 3)


async def test_the_fingerprint_is_the_models_and_the_seed_is_told() -> None:
    async with open_door() as door:
        first, second = [await door.generation.Generate(prompt()) for _ in range(2)]
    async with open_door(model=served_model(revision="other")) as door:
        third = await door.generation.Generate(prompt())
    assert first.info.fingerprint == second.info.fingerprint != third.info.fingerprint
    assert first.info.response_id != second.info.response_id
    assert first.info.seed != second.info.seed


async def test_a_matched_stop_string_ends_the_candidate_and_drops_what_follows() -> None:
    async def script(stream: FakeStream) -> None:
        stream.admit()
        stream.tokens(encode("abSTOPcd"))

    async with open_door(FakeEngine(script)) as door:
        whole = await door.generation.Generate(prompt(stopping={"stop": ["STOP"]}, output={"token_ids": True}))
        kept = await door.generation.Generate(prompt(stopping={"stop": ["STOP"], "include_stop": True}))
    [candidate] = whole.candidates
    assert candidate.text == "ab"
    assert candidate.finish == types_pb2.Finish(reason=types_pb2.FINISH_REASON_STOP, stop="STOP")
    assert list(candidate.token_ids) == encode("abSTOP")
    assert candidate.token_count == whole.usage.completion_tokens == len(encode("abSTOP"))
    assert kept.candidates[0].text == "abSTOP"
    assert [stream.finished_early for stream in door.engine.streams] == [[0], [0]]
    assert all(stream.closed for stream in door.engine.streams)


async def test_end_tokens_are_hidden_unless_special_tokens_are_wanted() -> None:
    async def script(stream: FakeStream) -> None:
        stream.admit()
        stream.tokens(encode("a."), finish=FinishReason.STOP, stop_token_id=ord("."))

    async with open_door(FakeEngine(script)) as door:
        hidden = await door.generation.Generate(prompt(stopping={"stop_token_ids": [46]}, output={"token_ids": True}))
        shown = await door.generation.Generate(prompt(output={"skip_special_tokens": False}))
        door.engine.script = Play([encode("a")], end=True)
        special = await door.generation.Generate(prompt(output={"skip_special_tokens": False}))
    assert (hidden.candidates[0].text, list(hidden.candidates[0].token_ids)) == ("a", [97, 46])
    assert hidden.candidates[0].finish.stop_token_id == 46
    assert shown.candidates[0].text == "a."
    assert special.candidates[0].text == "a<|end|>"


async def test_several_candidates_stream_side_by_side() -> None:
    async def script(stream: FakeStream) -> None:
        stream.admit()
        stream.tokens(encode("one"), index=0)
        stream.tokens(encode("two"), index=1, finish=FinishReason.MAX_TOKENS)
        stream.tokens(encode("!"), index=0, finish=FinishReason.CONTEXT_LENGTH)

    async with open_door(FakeEngine(script)) as door:
        streamed = await read(door.generation.GenerateStream(prompt(sampling={"candidate_count": 2})))
    assert (streamed.text(0), streamed.text(1)) == ("one!", "two")
    reasons = {finished.index: finished.finish.reason for finished in streamed.of("candidate_finished")}
    assert reasons == {0: types_pb2.FINISH_REASON_CONTEXT_LENGTH, 1: types_pb2.FINISH_REASON_MAX_TOKENS}
    assert streamed.of("completed")[0].usage.completion_tokens == 7


async def test_best_of_returns_the_likeliest_best_first() -> None:
    async def script(stream: FakeStream) -> None:
        assert stream.request.logprobs is not None
        stream.admit()
        for index, mean in enumerate((-3.0, -1.0, -2.0)):
            rows = [row(mean - 0.5), row(mean + 0.5)]
            stream.tokens([97 + index] * 2, index=index, logprobs=rows, finish=FinishReason.MAX_TOKENS)

    async with open_door(FakeEngine(script)) as door:
        whole = await door.generation.Generate(prompt(sampling={"candidate_count": 2, "best_of": 3}))
    assert [(candidate.index, candidate.text) for candidate in whole.candidates] == [(0, "bb"), (1, "cc")]
    assert not any(candidate.HasField("logprobs") for candidate in whole.candidates)
    assert whole.usage.completion_tokens == 6


async def test_logprobs_are_columns_beside_the_tokens() -> None:
    async def script(stream: FakeStream) -> None:
        stream.admit()
        stream.tokens([104, 0xC3], logprobs=[row(-0.5, 104, END), row(-0.25, 0xC3, 105)])
        rows = [row(-1.5, 1, 2), row(-2.5, 3, 4)]
        stream.tokens([0xA9, END], logprobs=rows, finish=FinishReason.STOP, stop_token_id=END)

    fields: dict[str, Any] = {"output": {"logprobs": {"top_n": 2}}}
    async with open_door(FakeEngine(script)) as door:
        whole = await door.generation.Generate(prompt(**fields))
        streamed = await read(door.generation.GenerateStream(prompt(**fields)))
    columns = whole.candidates[0].logprobs
    assert list(columns.token_ids) == [104, 0xC3, 0xA9, END]
    assert list(columns.logprobs) == [-0.5, -0.25, -1.5, -2.5]
    assert list(columns.token_bytes) == [b"h", b"\xc3", b"\xa9", b"<|end|>"]
    assert list(columns.ranks) == [1, 1, 1, 1]
    assert list(columns.special) == [False, False, False, True]
    assert [list(other.token_ids) for other in columns.alternatives] == [[104, END], [0xC3, 105], [1, 2], [3, 4]]
    assert list(columns.alternatives[0].logprobs) == [-1.5, -1.5]
    assert columns.alternatives[0].token_bytes[1] == b"<|end|>"
    told = [(delta.text, list(delta.logprobs.token_ids)) for delta in streamed.of("delta")]
    assert "".join(text for text, _ in told) == "hé"
    assert [token_id for _, ids in told for token_id in ids] == list(columns.token_ids)


async def test_prompt_details_come_in_chunks_and_once() -> None:
    async def script(stream: FakeStream) -> None:
        stream.admit()
        rows = [row(-float(position)) for position in range(1, len(stream.request.prompt_token_ids))]
        stream.score(1, rows[:3])
        stream.score(1, rows[:3])  # as after a preemption
        stream.score(4, rows[3:])
        stream.tokens([65], finish=FinishReason.MAX_TOKENS)

    fields: dict[str, Any] = {"text": "abcdefg", "output": {"prompt_token_ids": True, "prompt_logprobs": {}}}
    async with open_door(FakeEngine(script)) as door:
        whole = await door.generation.Generate(prompt(**fields))
        streamed = await read(door.generation.GenerateStream(prompt(**fields)))
        one = await door.generation.Generate(prompt(text="a", output={"prompt_logprobs": {}}))
    assert list(whole.prompt.token_ids) == list(whole.prompt.logprobs.token_ids) == list(b"abcdefg")
    assert math.isnan(whole.prompt.logprobs.logprobs[0])
    assert list(whole.prompt.logprobs.logprobs[1:]) == [-1, -2, -3, -4, -5, -6]
    assert list(whole.prompt.logprobs.ranks) == [0, 1, 1, 1, 1, 1, 1]
    chunks = streamed.of("prompt")
    assert [(chunk.offset, bytes(chunk.token_ids)) for chunk in chunks] == [(0, b"abcd"), (4, b"efg")]
    assert len(one.prompt.logprobs.logprobs) == 1
    assert math.isnan(one.prompt.logprobs.logprobs[0])


async def test_text_can_be_left_out() -> None:
    async with open_door(FakeEngine(Play([list("é".encode()), [65]], end=False))) as door:
        fields: dict[str, Any] = {"output": {"text": False, "token_ids": True}}
        streamed = await read(door.generation.GenerateStream(prompt(**fields)))
        whole = await door.generation.Generate(prompt(**fields))
    assert (streamed.text(), whole.candidates[0].text) == ("", "")
    assert streamed.token_ids() == list(whole.candidates[0].token_ids) == [0xC3, 0xA9, 65]


async def test_deltas_are_held_for_enough_tokens_but_not_for_ever() -> None:
    released = asyncio.Event()

    async def script(stream: FakeStream) -> None:
        stream.admit()
        stream.tokens([97])
        await released.wait()
        for token in (98, 99, 100, 101):
            stream.tokens([token])
            await asyncio.sleep(0.01)
        stream.tokens([102], finish=FinishReason.MAX_TOKENS)

    cut = {"min_tokens_per_event": 4, "max_delay": Duration(nanos=50_000_000), "usage_per_event": True}
    request = prompt(stream=cut)
    async with open_door(FakeEngine(script)) as door:
        call = door.generation.GenerateStream(request)
        assert (await call.read()).WhichOneof("event") == "started"
        first = (await call.read()).delta
        assert (first.text, first.usage.completion_tokens) == ("a", 1)
        request.stream.max_delay.FromSeconds(10)
        released.set()
        streamed = await read(door.generation.GenerateStream(request))
        call.cancel()
    deltas = streamed.of("delta")
    assert streamed.text() == "abcdef"
    assert all(delta.token_count >= 4 for delta in deltas[:-1])
    assert deltas[-1].usage.completion_tokens == 6


async def test_everything_pending_is_one_event_a_candidate() -> None:
    async def script(stream: FakeStream) -> None:
        stream.admit()
        for token in b"abcdef":
            stream.tokens([token])
        stream.tokens([103], finish=FinishReason.MAX_TOKENS)

    async with open_door(FakeEngine(script)) as door:
        streamed = await read(door.generation.GenerateStream(prompt()))
    assert [delta.text for delta in streamed.of("delta")] == ["abcdefg"]


async def test_what_the_engine_gets_is_what_was_asked() -> None:
    request = prompt(
        text="hello world",
        truncate_prompt_tokens=4,
        sampling={
            "temperature": 0.5,
            "top_k": 4_000_000_000,
            "seed": 7,
            "logit_bias": {5: 1.5},
            "allowed_token_ids": [9, 3],
        },
        stopping={"min_tokens": 2, "stop_token_ids": [33], "time_limit": Duration(seconds=2)},
        output={"logprobs": {"top_n": 3, "token_ids": [8]}},
        scheduling={"priority": -3, "max_queue_time": Duration(seconds=4)},
        cache={"salt": "tenant", "bypass": True},
    )
    async with open_door() as door:
        await door.generation.Generate(request, timeout=30)
    got = door.engine.streams[0].request
    assert got.prompt_token_ids == tuple(encode("hello world"))[-4:]
    assert (got.sampling.temperature, got.sampling.seed, got.sampling.top_p) == (0.5, 7, 1.0)
    assert got.sampling.top_k == TOKENIZER.vocab_size
    assert (got.sampling.logit_bias, got.sampling.allowed_token_ids) == (((5, 1.5),), (3, 9))
    assert (got.stopping.max_tokens, got.stopping.context_limited) == (252, True)
    assert (got.stopping.min_tokens, got.stopping.time_limit_s) == (2, 2.0)
    assert got.stopping.stop_token_ids == {33, END}
    assert got.logprobs is not None
    assert (got.logprobs.top_n, got.logprobs.token_ids) == (3, (8,))
    assert got.priority == -3
    assert (got.cache.salt, got.cache.bypass) == ("tenant", True)
    assert got.queue_deadline == got.arrival_time + 4
    assert got.deadline is not None
    assert 0 < got.deadline - got.arrival_time <= 31


async def test_ignored_end_tokens_do_not_stop() -> None:
    async with open_door() as door:
        await door.generation.Generate(prompt(stopping={"ignore_eos": True, "max_tokens": 5}))
    stopping = door.engine.streams[0].request.stopping
    assert (stopping.stop_token_ids, stopping.max_tokens, stopping.context_limited) == (frozenset(), 5, False)
