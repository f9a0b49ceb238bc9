"""One candidate as it grows: its tokens kept in step with its text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tokenwire_service.core.events import FinishReason, TokenLogprob, TokensGenerated
from tokenwire_service.rpc.events import CandidateDelta, CandidateEnded
from tokenwire_service.rpc.plan import GenerationPlan
from tokenwire_service.text.candidate_text import CandidateText, TextDelta
from tokenwire_service.text.detokenizer import IncrementalDetokenizer
from tokenwire_service.text.stop_strings import StopStrings
from tokenwire_service.text.tokenizer import Tokenizer

_Token = tuple[int, TokenLogprob | None]


class Candidate:
    """Takes what the engine generates; gives deltas whose tokens and text belong together."""

    def __init__(self, index: int, plan: GenerationPlan, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._index = index
        self._with_text = plan.output.text
        self._hides_end = plan.output.skip_special_tokens
        stopping = plan.stopping
        stop = StopStrings(stopping.stop, include_stop=stopping.include_stop) if stopping.stop else None
        detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special_tokens=plan.output.skip_special_tokens)
        self._text = CandidateText(detokenizer, stop, min_tokens=stopping.min_tokens)
        self._untold: deque[_Token] = deque()
        self.num_tokens = 0
        """Tokens that belong to the candidate; those generated after a stop string do not."""
        self.ended: CandidateEnded | None = None
        self.plain = False
        """Whether a token whose text is whole by itself needs no `push`: add it to `num_tokens`, tell its text."""

    def push(self, news: TokensGenerated) -> tuple[CandidateDelta, CandidateEnded | None]:
        """Take tokens of a candidate that has not ended: what is new, and its end when these were the last."""
        ids = news.token_ids
        if len(ids) == 1 and news.finish is None and not self._untold:
            text = self._text.push_plain(ids[0])
            if text is not None:
                self.num_tokens += 1
                self.plain = True
                return CandidateDelta(self._index, text, ids, news.logprobs), None
        delta = self._push(news)
        self.plain = self.ended is None and not self._untold and self._text.plain
        return delta, self.ended

    def _push(self, news: TokensGenerated) -> CandidateDelta:
        ids, finish = news.token_ids, news.finish
        # The token that ended it has no text to show, whatever it spells.
        hidden = 1 if finish is not None and finish.stop_token_id is not None and self._hides_end else 0
        delta = self._text.push(ids[: len(ids) - hidden] if hidden else ids)
        if delta.matched_stop is not None:
            self._take(news, delta.num_taken)
            return self._end_at_stop(delta.text, delta.matched_stop)
        self._take(news, len(ids))
        if finish is None:
            return self._delta(delta.text, delta)
        rest = self._text.finish()
        if rest.matched_stop is not None:
            return self._end_at_stop(delta.text + rest.text, rest.matched_stop)
        self.ended = CandidateEnded(self._index, finish.reason, stop_token_id=finish.stop_token_id)
        return self._all(delta.text + rest.text)

    def _take(self, news: TokensGenerated, num: int) -> None:
        rows = news.logprobs or (None,) * len(news.token_ids)
        self._untold.extend(zip(news.token_ids[:num], rows[:num], strict=True))
        self.num_tokens += num

    def _end_at_stop(self, text: str, stop: str) -> CandidateDelta:
        self.ended = CandidateEnded(self._index, FinishReason.STOP, stop=stop)
        return self._all(text)

    def _delta(self, text: str, told: TextDelta) -> CandidateDelta:
        return self._tell(text, told.num_tokens) if self._with_text else self._all(text)

    def _all(self, text: str) -> CandidateDelta:
        return self._tell(text, len(self._untold))

    def _tell(self, text: str, num: int) -> CandidateDelta:
        tokens = [self._untold.popleft() for _ in range(num)]
        return CandidateDelta(
            index=self._index,
            text=text,
            token_ids=tuple(token_id for token_id, _ in tokens),
            logprobs=tuple(row for _, row in tokens if row is not None),
        )
