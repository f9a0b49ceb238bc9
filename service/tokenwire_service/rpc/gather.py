"""A whole generation gathered from its events: what a unary call returns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenwire_service.core.events import TokenLogprob
from tokenwire_service.rpc.events import CandidateDelta, CandidateEnded, Done, GenerationEvent, PromptChunk, Started


@dataclass(slots=True)
class GatheredCandidate:
    """One candidate's deltas, concatenated."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    ended: CandidateEnded | None = None

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of its tokens; minus infinity without any."""
        if not self.logprobs:
            return -math.inf
        return sum(row.logprob for row in self.logprobs) / len(self.logprobs)


class Gathered:
    """Takes every event of a generation."""

    def __init__(self) -> None:
        self.started: Started | None = None
        self.done: Done | None = None
        self._texts: dict[int, list[str]] = {}
        self._candidates: dict[int, GatheredCandidate] = {}
        self._chunks: list[PromptChunk] = []

    def add(self, events: Iterable[GenerationEvent]) -> None:
        """Take a batch of events."""
        for event in events:
            match event:
                case Started():
                    self.started = event
                case PromptChunk():
                    self._chunks.append(event)
                case CandidateDelta():
                    self._delta(event)
                case CandidateEnded():
                    self._candidate(event.index).ended = event
                case Done():
                    self.done = event

    def _delta(self, event: CandidateDelta) -> None:
        candidate = self._candidate(event.index)
        self._texts.setdefault(event.index, []).append(event.text)
        candidate.token_ids += event.token_ids
        candidate.logprobs += event.logprobs

    def _candidate(self, index: int) -> GatheredCandidate:
        return self._candidates.setdefault(index, GatheredCandidate(index))

    def prompt_chunk(self) -> PromptChunk | None:
        """Everything about the prompt as one chunk; None when nothing was asked for."""
        if not self._chunks:
            return None
        return PromptChunk(
            0,
            tuple(token_id for chunk in self._chunks for token_id in chunk.token_ids),
            tuple(row for chunk in self._chunks for row in chunk.logprobs),
        )

    def candidates(self, count: int) -> list[GatheredCandidate]:
        """The `count` best, best first when there are more; numbered from 0."""
        found = [self._candidates[index] for index in sorted(self._candidates)]
        for candidate in found:
            candidate.text = "".join(self._texts.get(candidate.index, ()))
        if len(found) > count:
            found.sort(key=lambda candidate: candidate.mean_logprob, reverse=True)
        for index, candidate in enumerate(found[:count]):
            candidate.index = index
        return found[:count]
