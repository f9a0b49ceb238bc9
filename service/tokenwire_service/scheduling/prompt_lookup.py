"""Guesses at the next tokens, taken from the text itself: what followed the last time it said the same.

Saxena, "Prompt Lookup Decoding" (2023). Guesses are checked elsewhere; a wrong one costs time and nothing else.
"""

from __future__ import annotations

MIN_NGRAM = 2
MAX_NGRAM = 4
WINDOW = 8192
"""Latest positions an index covers: a few MB of entries at most."""

_FIRST_RATE = 0.5
_GAIN = 0.25
"""Weight of the latest draft in the running share of accepted guesses."""
_WORTHWHILE = 0.2
"""Share of guesses accepted below which computing them costs more than it saves: on a CPU each takes about an eighth
of a step at batch 1, on a GPU less."""
_FIRST_PAUSE = 16
_LONGEST_PAUSE = 256


class PromptLookup:
    """An index of one growing list of tokens, from every n-gram to where its latest occurrence ended.

    Learning a token is one entry for each n-gram length, a guess one look-up for each, however long the text is. All
    calls take the same list, grown at its end or not at all.
    """

    def __init__(self, min_ngram: int = MIN_NGRAM, max_ngram: int = MAX_NGRAM, window: int = WINDOW) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._window = window
        self._ends: dict[tuple[int, ...], int] = {}
        """The index of the token that follows the latest occurrence of an n-gram, other than at the text's end."""
        self._num_learned = 0

    def __len__(self) -> int:
        """Entries held: `window` for each n-gram length at most."""
        return len(self._ends)

    def find(self, token_ids: list[int]) -> int | None:
        """Where the text went on after the latest earlier occurrence of its last n-gram, the longest that has one."""
        self._learn(token_ids)
        for size in self._sizes:
            end = self._ends.get(tuple(token_ids[-size:]))
            if end is not None:
                return end
        return None

    def propose(self, token_ids: list[int], num_tokens: int) -> tuple[int, ...]:
        """The `num_tokens` tokens from `find` on, or () when there is nothing to go by. The copy may run into itself,
        so that a text that goes round goes on."""
        end = self.find(token_ids)
        if end is None:
            return ()
        period = len(token_ids) - end
        return tuple([token_ids[end + i % period] for i in range(num_tokens)])

    def _learn(self, token_ids: list[int]) -> None:
        """Enter the n-grams before each token not yet learned, and drop those that left the window."""
        length = len(token_ids)
        if length - self._num_learned > self._window:
            self._ends.clear()
            self._num_learned = length - self._window
        ends = self._ends
        for end in range(self._num_learned, length):
            old = end - self._window
            for size in self._sizes:
                if size <= end:
                    ends[tuple(token_ids[end - size : end])] = end
                if size <= old and ends.get(key := tuple(token_ids[old - size : old])) == old:
                    del ends[key]
        self._num_learned = length


class Drafter:
    """Drafts of one sequence, paused while they are not worth computing: the longer, the more often that was so."""

    def __init__(self) -> None:
        self._lookup = PromptLookup()
        self._rate = _FIRST_RATE
        self._pause = _FIRST_PAUSE
        self._resume_length = 0

    def sees_repeat(self, token_ids: list[int]) -> bool:
        """Whether `propose` has a guess."""
        return len(token_ids) >= self._resume_length and self._lookup.find(token_ids) is not None

    def propose(self, token_ids: list[int], num_tokens: int) -> tuple[int, ...]:
        """`num_tokens` guesses at what follows `token_ids`, or (). See PromptLookup."""
        return self._lookup.propose(token_ids, num_tokens) if len(token_ids) >= self._resume_length else ()

    def learn_outcome(self, num_drafted: int, num_accepted: int, num_tokens: int) -> None:
        """A draft was verified, and the text has `num_tokens` tokens now."""
        self._rate += _GAIN * (num_accepted / num_drafted - self._rate)
        if self._rate >= _WORTHWHILE:
            self._pause = _FIRST_PAUSE
            return
        self._resume_length = num_tokens + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
