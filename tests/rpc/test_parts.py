"""Small parts tried by themselves where the wire would only blur what they do."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenwire_service.core.events import PromptScored, TokenLogprob
from tokenwire_service.core.params import LogprobsParams
from tokenwire_service.errors import QueueFullError
from tokenwire_service.rpc.admission import MAX_RETRY_S, MIN_RETRY_S, Admission
from tokenwire_service.rpc.cutter import DeltaCutter
from tokenwire_service.rpc.events import CandidateDelta
from tokenwire_service.rpc.plan import MAX_EVENT_ENTRIES, EventPlan, OutputPlan, tokens_per_event
from tokenwire_service.rpc.prompt_details import MAX_CHUNK_TOKENS, PromptDetailer


def delta(text: str, num: int) -> CandidateDelta:
    return CandidateDelta(0, text, tuple(range(num)), tuple(TokenLogprob(-float(i), 1) for i in range(num)))


def test_a_cutter_holds_for_tokens_or_time() -> None:
    cutter = DeltaCutter(EventPlan(min_tokens=3, max_delay_s=1.0), 100)
    cutter.push(delta("a", 1), now=10.0)
    assert cutter.due() == 11.0
    assert list(cutter.ready(10.5)) == []
    cutter.push(delta("b", 2), now=10.6)
    [ready] = cutter.ready(10.6)
    assert (ready.text, ready.token_ids, len(ready.logprobs)) == ("ab", (0, 0, 1), 3)
    assert cutter.due() is None
    cutter.push(delta("c", 1), now=20.0)
    assert [held.text for held in cutter.ready(21.0)] == ["c"]


def test_a_long_delta_is_cut_to_the_limit() -> None:
    cutter = DeltaCutter(EventPlan(), 4)
    cutter.push(delta("text", 10), now=0.0)
    parts = list(cutter.ready(0.0))
    assert [len(part.token_ids) for part in parts] == [len(part.logprobs) for part in parts] == [4, 4, 2]
    assert "".join(part.text for part in parts) == "text"
    assert tuple(i for part in parts for i in part.token_ids) == tuple(range(10))


def test_events_hold_fewer_tokens_the_more_alternatives_are_asked_for() -> None:
    assert tokens_per_event(None) == MAX_EVENT_ENTRIES
    assert tokens_per_event(LogprobsParams(top_n=20, token_ids=(1, 2, 3))) == MAX_EVENT_ENTRIES // 24


@settings(deadline=None, derandomize=True)
@given(
    st.integers(1, 20_000), st.lists(st.tuples(st.integers(1, 12_000), st.integers(0, 5_000)), min_size=1, max_size=8)
)
def test_prompt_details_tell_every_position_once_and_in_order(length: int, steps: list[tuple[int, int]]) -> None:
    prompt = tuple(range(length))
    detailer = PromptDetailer(prompt, OutputPlan(prompt_logprobs=LogprobsParams(top_n=9)))
    chunks, at = list(detailer.started()), 1
    for step, repeated in [*steps, (length, 0)]:
        until, again = min(at + step, length), min(repeated, at - 1)  # `again` positions are scored once more
        rows = tuple(TokenLogprob(-float(i), 1) for i in range(at - again, until))
        chunks += detailer.scored(PromptScored("r", at - again, rows[: until - at + again]))
        at = until
    chunks += detailer.finished()
    assert all(len(chunk.token_ids) == len(chunk.logprobs) <= MAX_CHUNK_TOKENS for chunk in chunks)
    assert [chunk.offset for chunk in chunks] == [0, *(c.offset + len(c.token_ids) for c in chunks[:-1])]
    assert tuple(i for chunk in chunks for i in chunk.token_ids) == prompt
    rows = [row for chunk in chunks for row in chunk.logprobs]
    assert rows[0] is None
    assert [row and -row.logprob for row in rows[1:]] == [float(i) for i in range(1, length)]


def test_admission_counts_and_frees() -> None:
    admission = Admission(2)
    with admission.enter(100) as first, admission.enter(100) as second:
        with pytest.raises(QueueFullError) as caught:
            admission.enter(100)
        assert caught.value.retry_after_s is not None
        assert MIN_RETRY_S <= caught.value.retry_after_s <= MAX_RETRY_S
        first.queue(90)
        with pytest.raises(QueueFullError):
            second.queue(11)
        second.queue(10)
        first.placed()
        first.placed()
        assert admission.waiting_tokens == 10
    assert (admission.in_flight, admission.waiting_tokens) == (0, 0)


def test_a_long_prompt_alone_is_always_taken() -> None:
    admission = Admission(2)
    with admission.enter(10) as ticket:
        ticket.queue(1_000)
        assert admission.waiting_tokens == 1_000
