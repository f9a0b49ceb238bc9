"""Cuts a stream's deltas into events: everything of one candidate that is ready together is one event."""

from __future__ import annotations

from tokenwire_service.rpc.events import CandidateDelta
from tokenwire_service.rpc.plan import EventPlan


class DeltaCutter:
    """Merges deltas of a candidate and holds them until they are large or old enough, or the candidate ends."""

    def __init__(self, plan: EventPlan, max_tokens: int) -> None:
        """`max_tokens`: what one event may hold, so that a slow reader's messages keep the usual size limits."""
        self._plan = plan
        self._max_tokens = max_tokens
        self.holds_back = plan.min_tokens > 1
        self._held: dict[int, list[CandidateDelta]] = {}
        self._due: dict[int, float] = {}

    def push(self, delta: CandidateDelta, now: float) -> None:
        """Take a delta; `now` is monotonic seconds."""
        held = self._held.get(delta.index)
        if held is not None:
            held.append(delta)
            return
        self._held[delta.index] = [delta]
        if self.holds_back:
            self._due[delta.index] = now + self._plan.max_delay_s

    @property
    def holds(self) -> bool:
        """Whether there is anything to send, now or later."""
        return bool(self._held)

    def ready(self, now: float) -> list[CandidateDelta]:
        """One delta for each candidate that has enough."""
        if len(self._held) == 1 and not self.holds_back:
            _, held = self._held.popitem()
            return _split(_merge(held), self._max_tokens)
        return [part for index in tuple(self._held) if self._enough(index, now) for part in self.rest(index)]

    def rest(self, index: int) -> list[CandidateDelta]:
        """What is held of one candidate, as one delta, or as few as the limit allows."""
        held = self._held.pop(index, None)
        self._due.pop(index, None)
        return _split(_merge(held), self._max_tokens) if held else []

    def _enough(self, index: int, now: float) -> bool:
        if not self.holds_back or now >= self._due[index]:
            return True
        return sum(len(delta.token_ids) for delta in self._held[index]) >= self._plan.min_tokens

    def due(self) -> float | None:
        """When the oldest held delta must go, on the monotonic clock."""
        return min(self._due.values()) if self._due else None


def _merge(deltas: list[CandidateDelta]) -> CandidateDelta:
    if len(deltas) == 1:
        return deltas[0]
    return CandidateDelta(
        index=deltas[0].index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        logprobs=tuple(row for delta in deltas for row in delta.logprobs),
    )


def _split(delta: CandidateDelta, most: int) -> list[CandidateDelta]:
    """The delta in parts of at most `most` tokens; the first has the text."""
    if len(delta.token_ids) <= most:
        return [delta]
    return [
        CandidateDelta(
            index=delta.index,
            text="" if begin else delta.text,
            token_ids=delta.token_ids[begin : begin + most],
            logprobs=delta.logprobs[begin : begin + most],
        )
        for begin in range(0, len(delta.token_ids), most)
    ]
