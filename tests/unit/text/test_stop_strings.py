"""Stop strings against brute force, for any cut of the text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenwire_service.text.stop_strings import StopStrings

ALPHABET = "abé🦥"
texts = st.text(alphabet=ALPHABET, max_size=40)
stops = st.lists(st.text(alphabet=ALPHABET, min_size=1, max_size=5), min_size=1, max_size=6)


def brute_force(text: str, stop: list[str]) -> tuple[int, str] | None:
    """(end, string) of the match that ends first, the longest of those that end there."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            return end, max(ending, key=len)
    return None


def held_by_brute_force(text: str, stop: list[str]) -> str:
    ends = [text[-n:] for n in range(1, len(text) + 1) if any(s.startswith(text[-n:]) for s in stop)]
    return max(ends, key=len, default="")


def cut(text: str, data: st.DataObject) -> list[str]:
    bounds = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=10))})
    return [text[a:b] for a, b in pairwise(bounds)]


@settings(max_examples=500, deadline=None)
@given(text=texts, stop=stops, include=st.booleans(), data=st.data())
def test_equals_brute_force(text: str, stop: list[str], include: bool, data: st.DataObject) -> None:
    matcher = StopStrings(stop, include_stop=include)
    shown, matched, fed = "", None, ""
    for delta in cut(text, data):
        fed += delta
        emit, matched = matcher.feed(delta)
        shown += emit
        if matched is not None:
            break
        held = held_by_brute_force(fed, stop)
        assert shown == fed[: len(fed) - len(held)], "held back too much or too little"
        assert matcher.held == len(held)
    expected = brute_force(text, stop)
    if expected is None:
        assert matched is None
        assert shown + matcher.flush() == text
    else:
        end, string = expected
        assert matched == string
        assert shown == (text[:end] if include else text[: end - len(string)])
        assert matcher.feed("more") == ("", None)
        assert matcher.flush() == ""


@settings(max_examples=200, deadline=None)
@given(text=texts, stop=stops, data=st.data())
def test_unarmed_text_is_all_shown(text: str, stop: list[str], data: st.DataObject) -> None:
    matcher = StopStrings(stop)
    shown = "".join(matcher.feed(delta, armed=False)[0] for delta in cut(text, data))
    assert matcher.held < max(map(len, stop)), "a string passed over is not held back whole"
    assert shown + matcher.flush() == text


def test_a_match_begun_unarmed_counts_when_it_ends_armed() -> None:
    matcher = StopStrings(["END"])
    assert matcher.feed("one EN", armed=False) == ("one ", None)
    assert matcher.feed("D two") == ("", "END")


def test_a_match_ended_unarmed_is_text() -> None:
    matcher = StopStrings(["END"])
    assert matcher.feed("END", armed=False) == ("END", None)
    assert matcher.feed(" END") == (" ", "END")


@pytest.mark.parametrize("size", [1, 7, 1024])
def test_each_character_is_looked_at_once(size: int) -> None:
    """Strings chosen to make a matcher that goes back quadratic: the steps taken are counted, not timed."""
    stop = ["a" * 1023 + chr(ord("b") + i) for i in range(16)]
    matcher = StopStrings(stop)
    text = "a" * 50_000

    class Counting(list):  # type: ignore[type-arg]
        lookups = 0

        def __getitem__(self, index: object) -> object:
            Counting.lookups += 1
            return super().__getitem__(index)  # type: ignore[index]

    matcher._nodes = Counting(matcher._nodes)
    shown = "".join(matcher.feed(text[i : i + size])[0] for i in range(0, len(text), size))
    assert Counting.lookups < 8 * len(text)
    assert shown + matcher.flush() == text
