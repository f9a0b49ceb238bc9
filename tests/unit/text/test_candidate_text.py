"""Text, tokens and stop strings of one candidate keep in step."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenwire_service.text.candidate_text import CandidateText
from tokenwire_service.text.detokenizer import IncrementalDetokenizer
from tokenwire_service.text.stop_strings import StopStrings
from tokenwire_service.text.tokenizer import Tokenizer


def candidate(tokenizer: Tokenizer, *stop: str, min_tokens: int = 0, include_stop: bool = False) -> CandidateText:
    strings = StopStrings(stop, include_stop=include_stop) if stop else None
    return CandidateText(IncrementalDetokenizer(tokenizer), strings, min_tokens=min_tokens)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_a_stop_string_across_tokens_is_cut(byte_level: Tokenizer) -> None:
    ids = encode(byte_level, "One, two, three, four")
    text = candidate(byte_level, "two, th")
    deltas = [text.push([i]) for i in ids]
    assert "".join(delta.text for delta in deltas) == "One, "
    assert [delta.matched_stop for delta in deltas if delta.matched_stop] == ["two, th"]
    ended = next(i for i, delta in enumerate(deltas) if delta.matched_stop)
    assert text.num_tokens == ended + 1
    assert sum(delta.num_tokens for delta in deltas) == ended + 1
    assert text.finish().text == ""


def test_tokens_after_the_match_are_not_taken(byte_level: Tokenizer) -> None:
    ids = encode(byte_level, "One, two, three, four")
    delta = candidate(byte_level, "two", include_stop=True).push(ids)
    assert delta.text == "One, two"
    assert delta.num_taken == delta.num_tokens == len(encode(byte_level, "One, two"))


def test_min_tokens_counts_the_completing_token(byte_level: Tokenizer) -> None:
    ids = encode(byte_level, " a a a a")
    assert len(ids) == 4
    text = candidate(byte_level, "a", min_tokens=3)
    deltas = [text.push([i]) for i in ids]
    assert [delta.text for delta in deltas] == [" a", " a", " ", ""]
    assert [delta.matched_stop for delta in deltas] == [None, None, "a", None]


def test_a_token_is_told_when_its_text_is(byte_level: Tokenizer) -> None:
    ids = encode(byte_level, "x🦥")
    text = candidate(byte_level)
    assert [text.push([i]).num_tokens for i in ids] == [1, *[0] * (len(ids) - 2), len(ids) - 1]
    assert text.finish().num_tokens == 0


def test_held_tokens_are_told_at_the_end(byte_level: Tokenizer) -> None:
    ids = encode(byte_level, "wait for it")
    text = candidate(byte_level, "it is over")
    deltas = [text.push(ids), text.finish()]
    assert [delta.text for delta in deltas] == ["wait for ", "it"]
    assert [delta.num_tokens for delta in deltas] == [len(ids) - 1, 1]


def test_what_flushing_completes_may_match(byte_level: Tokenizer) -> None:
    cut = encode(byte_level, "🦥")[:-1]
    text = candidate(byte_level, "\ufffd")
    assert text.push(cut).text == ""
    end = text.finish()
    assert (end.text, end.matched_stop, end.num_tokens) == ("", "\ufffd", len(cut))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    ids=st.lists(st.integers(0, 49_151), max_size=30),
    size=st.integers(1, 7),
    stop=st.lists(st.text(min_size=1, max_size=2), max_size=3),
)
def test_any_cut_gives_the_same(byte_level: Tokenizer, ids: list[int], size: int, stop: list[str]) -> None:
    def run(step: int) -> tuple[str, str | None, int, int]:
        text = candidate(byte_level, *stop)
        deltas = [text.push(ids[i : i + step]) for i in range(0, len(ids), step)]
        deltas.append(text.finish())
        matched = next((delta.matched_stop for delta in deltas if delta.matched_stop), None)
        told = sum(delta.num_tokens for delta in deltas)
        assert told == text.num_tokens
        return "".join(delta.text for delta in deltas), matched, told, text.num_tokens

    assert run(size) == run(1)
    if not stop:
        assert run(size)[0] == byte_level.decode(ids)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), lost=st.sets(st.integers(0, 60)))
def test_plain_tokens_taken_the_short_way_tell_the_same(
    byte_level: Tokenizer, sentencepiece: Tokenizer, text: str, lost: set[int]
) -> None:
    """Ids are dropped here and there, so that characters break."""
    for tokenizer in (byte_level, sentencepiece):
        ids = [i for at, i in enumerate(encode(tokenizer, text)) if at not in lost]
        long_way, short_way = candidate(tokenizer), candidate(tokenizer)
        for token_id in ids:
            delta = long_way.push([token_id])
            plain = short_way.push_plain(token_id)
            if plain is None:
                assert short_way.push([token_id]) == delta
            else:
                assert (plain, 1) == (delta.text, delta.num_tokens)
        assert short_way.finish() == long_way.finish()
        assert short_way.num_tokens == long_way.num_tokens == len(ids)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), lost=st.sets(st.integers(0, 60)), prompt=st.sampled_from(["", "x", "🦥"]))
def test_tokens_that_are_not_pushed_tell_the_same(
    byte_level: Tokenizer, sentencepiece: Tokenizer, text: str, lost: set[int], prompt: str
) -> None:
    """Ids are dropped here and there, so that characters break, and the prompt may end in the middle of one."""
    for tokenizer in (byte_level, sentencepiece):
        ids = [i for at, i in enumerate(encode(tokenizer, text)) if at not in lost]
        before = encode(tokenizer, prompt)[:-1]
        long_way, short_way = (CandidateText(IncrementalDetokenizer(tokenizer, before)) for _ in range(2))
        for token_id in ids:
            delta = long_way.push([token_id])
            own = tokenizer.own_text(token_id)
            if own is not None and short_way.plain:
                assert (own, 1) == (delta.text, delta.num_tokens)
            else:
                assert short_way.push([token_id]) == delta
        assert short_way.finish() == long_way.finish()


def test_special_and_unknown_tokens_have_no_text_of_their_own(byte_level: Tokenizer) -> None:
    assert [byte_level.own_text(i) for i in sorted(byte_level.special_token_ids)[:3]] == [None] * 3
    assert byte_level.own_text(10**6) is None


def test_what_may_become_a_stop_string_is_never_plain(byte_level: Tokenizer) -> None:
    assert not candidate(byte_level, "x").plain
    assert candidate(byte_level, "x").push_plain(encode(byte_level, "a")[0]) is None
