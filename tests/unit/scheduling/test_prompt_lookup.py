"""The index of n-grams against a search of the whole text, and the pauses of drafts that fail."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenwire_service.scheduling.prompt_lookup import Drafter, PromptLookup


def searched(tokens: list[int], num_tokens: int, min_ngram: int, max_ngram: int, window: int) -> tuple[int, ...]:
    """What PromptLookup.propose says, by looking everywhere."""
    for size in range(max_ngram, min_ngram - 1, -1):
        for end in range(len(tokens) - 1, max(size, len(tokens) - window) - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                text = list(tokens)
                for i in range(num_tokens):
                    text.append(text[end + i])
                return tuple(text[len(tokens) :])
    return ()


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    pieces=st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=12),
    num_tokens=st.integers(1, 6),
    min_ngram=st.integers(1, 3),
    more=st.integers(0, 2),
    window=st.integers(1, 40),
)
def test_a_guess_is_what_a_search_of_the_text_finds(
    pieces: list[list[int]], num_tokens: int, min_ngram: int, more: int, window: int
) -> None:
    lookup = PromptLookup(min_ngram, min_ngram + more, window)
    tokens: list[int] = []
    for piece in pieces:
        tokens.extend(piece)
        assert lookup.propose(tokens, num_tokens) == searched(tokens, num_tokens, min_ngram, min_ngram + more, window)
        assert len(lookup) <= window * (more + 1)


def test_asking_often_or_seldom_makes_no_difference() -> None:
    rng = random.Random(3)
    tokens: list[int] = []
    often = PromptLookup(window=64)
    for _ in range(400):
        tokens.append(rng.randrange(3))
        guess = often.propose(tokens, 4)
        assert guess == PromptLookup(window=64).propose(tokens, 4)
    assert 64 < len(often) <= 3 * 64


def test_a_text_that_goes_round_is_guessed_past_its_end() -> None:
    assert PromptLookup().propose([5, 1, 2, 3, 1, 2], 5) == (3, 1, 2, 3, 1)
    assert PromptLookup().propose([7, 7, 7], 4) == (7, 7, 7, 7)


def test_the_longest_and_then_the_latest_match_wins() -> None:
    tokens = [1, 2, 3, 4, 50, 9, 3, 4, 60, 9, 3, 4, 70, 1, 2, 3, 4]
    assert PromptLookup().propose(tokens, 1) == (50,)
    assert PromptLookup(max_ngram=3).propose(tokens, 1) == (50,)
    assert PromptLookup(max_ngram=2).propose(tokens, 1) == (70,)


def test_too_short_a_text_has_no_guess() -> None:
    for tokens in ([], [1], [1, 1], [1, 2, 3]):
        assert PromptLookup().propose(tokens, 4) == ()


def test_rejected_drafts_pause_for_longer_each_time_and_one_success_ends_that() -> None:
    drafter = Drafter()
    tokens = [1] * 10
    pauses = []
    for _ in range(8):
        while drafter.propose(tokens, 4):
            drafter.learn_outcome(4, 0, len(tokens))
        assert not drafter.sees_repeat(tokens)
        begin = len(tokens)
        while not drafter.sees_repeat(tokens):
            tokens.append(1)
        pauses.append(len(tokens) - begin)
    assert pauses == [16, 32, 64, 128, 256, 256, 256, 256]
    drafter.learn_outcome(4, 4, len(tokens))
    assert drafter.propose(tokens, 4) == (1, 1, 1, 1)
    while drafter.propose(tokens, 4):
        drafter.learn_outcome(4, 0, len(tokens))
    tokens.extend([1] * 16)
    assert drafter.propose(tokens, 4)


def test_drafts_half_of_which_hold_go_on() -> None:
    drafter = Drafter()
    for length in range(10, 200):
        assert drafter.propose([1] * length, 4)
        drafter.learn_outcome(4, 2, length)
