"""One candidate's text: detokenized, searched for stop strings, and told in deltas."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tokenwire_service.text.detokenizer import IncrementalDetokenizer
from tokenwire_service.text.stop_strings import StopStrings


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What a push or the end made known."""

    text: str
    """Whole characters, none of them possibly part of a stop string that is to be cut."""
    num_tokens: int
    """How many further tokens (in order, since the last delta) have their whole text in what was told so far.

    Token ids and log-probabilities told together with the text keep in step by this count.
    """
    matched_stop: str | None = None
    num_taken: int = 0
    """Tokens of this push that belong to the candidate: all, or up to the one that completed the stop string."""


class CandidateText:
    """Composes a detokenizer and stop strings. After a match or `finish` it takes no more tokens."""

    def __init__(
        self, detokenizer: IncrementalDetokenizer, stop: StopStrings | None = None, *, min_tokens: int = 0
    ) -> None:
        """A stop string counts only when completed by a token from the `min_tokens`-th on."""
        self._detokenizer, self._stop = detokenizer, stop
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._made = self._told = 0
        # Where, in characters made so far, the text of each token not yet told ends.
        self._ends: deque[int] = deque()
        self._num_unfinished = 0
        self._ended = False

    @property
    def num_tokens(self) -> int:
        """Tokens pushed so far."""
        return self._num_tokens

    @property
    def plain(self) -> bool:
        """Whether a token that has a `Tokenizer.own_text` adds just that, and may as well not be pushed."""
        return self._stop is None and not self._num_unfinished and not self._ended and self._detokenizer.plain

    def push_plain(self, token_id: int) -> str | None:
        """What almost every token is: whole text, and nothing held back before it or after it. Else None: `push` it."""
        if self._stop is not None or self._num_unfinished or self._ended:
            return None
        text = self._detokenizer.push_whole(token_id)
        if text is not None:
            self._num_tokens += 1
            self._made += len(text)
            self._told = self._made
        return text

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """Take the next tokens, as far as they belong to the candidate."""
        if self._ended:
            return TextDelta("", 0)
        shown: list[str] = []
        for taken, token_id in enumerate(token_ids, start=1):
            text, matched = self._take(token_id)
            shown.append(text)
            if matched is not None:
                self._ended = True
                return TextDelta("".join(shown), self._tell_all(), matched, taken)
        delta = "".join(shown)
        self._told += len(delta)
        return TextDelta(delta, self._tell(), None, len(token_ids))

    def finish(self) -> TextDelta:
        """The candidate ended otherwise than by a stop string: everything held back, and every token."""
        if self._ended:
            return TextDelta("", 0)
        self._ended = True
        rest, matched = self._detokenizer.flush(), None
        if self._stop is not None:
            rest, matched = self._stop.feed(rest, armed=self._num_tokens >= self._min_tokens)
            rest += "" if matched is not None else self._stop.flush()
        return TextDelta(rest, self._tell_all(), matched)

    def _take(self, token_id: int) -> tuple[str, str | None]:
        text = self._detokenizer.push_one(token_id)
        self._num_tokens += 1
        self._made += len(text)
        self._num_unfinished += 1
        if not self._detokenizer.pending:
            self._ends.extend([self._made] * self._num_unfinished)
            self._num_unfinished = 0
        if self._stop is None:
            return text, None
        return self._stop.feed(text, armed=self._num_tokens >= self._min_tokens)

    def _tell(self) -> int:
        count = 0
        while self._ends and self._ends[0] <= self._told:
            self._ends.popleft()
            count += 1
        return count

    def _tell_all(self) -> int:
        count, self._num_unfinished = len(self._ends) + self._num_unfinished, 0
        self._ends.clear()
        return count
