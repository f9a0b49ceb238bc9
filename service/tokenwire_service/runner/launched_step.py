"""A step on its way: what the host must keep to make a result of what the device brings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenwire_service.core.events import TokenLogprob
from tokenwire_service.runner.logprobs import TokenScores
from tokenwire_service.runner.sampling_rows import SlotSampling
from tokenwire_service.runner.timing import Mark
from tokenwire_service.runner.token_counts import TokenCounts
from tokenwire_service.runner.transfer import Download
from tokenwire_service.scheduling.output import ScheduledSlot, SlotResult, StepResult

NOT_FINITE = "the model gave no usable number for the next token; change the sampling constraints or the prompt"
CHUNK_LOST = "a step that computed a part of this request was lost; retry"


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Prompt log-probabilities of one row; in pieces, because logits of a long prompt are too many to hold at once."""

    row: int
    offset: int
    """Prompt position of the first."""
    pieces: tuple[TokenScores, ...]

    def read(self, slot: int) -> SlotResult:
        """Waits for them."""
        scores: list[TokenLogprob] = []
        for piece in self.pieces:
            for score in piece.read():
                if score is None:
                    return SlotResult(slot, failure=NOT_FINITE)
                scores.append(score)
        return SlotResult(slot, prompt_offset=self.offset, prompt_logprobs=tuple(scores))


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """The tokens a step draws: one per row that samples, one more for each guess of a row with a draft."""

    download: Download
    """Token ids and whether they are valid; see kernels.sample.Choice."""
    scored: tuple[int, ...] = ()
    scores: TokenScores | None = None
    """Log-probabilities of the `scored` ones."""
    counts: tuple[tuple[int, TokenCounts], ...] = ()
    """Which of them are to be counted, and where."""
    owners: tuple[SlotSampling, ...] = ()
    """Parameters of the rows with a draft, in their order, as they were when it was launched."""


LearnDraft = Callable[[int, SlotSampling, int, tuple[int, ...]], None]
"""See SlotState.learn_draft."""


class LaunchedStep:
    """A PendingStep: `result` waits for the device the first time it is asked."""

    def __init__(
        self,
        step_id: int,
        scheduled: Sequence[ScheduledSlot],
        drawn: DrawnTokens | None,
        prompts: Sequence[PromptScores],
        end: Mark,
        learn_draft: LearnDraft,
        lost: Sequence[int] = (),
    ) -> None:
        """`end`: the last of the step's work on the device. Results wait for it even where there is nothing to read, so
        that there are never more steps queued on the device than are counted as being in flight. `lost`: slots whose
        chunk was lost with a step before."""
        self._step_id = step_id
        self._scheduled = scheduled
        self._drawn = drawn
        self._prompts = prompts
        self._end = end
        self._learn_draft = learn_draft
        self._lost = tuple(SlotResult(slot, failure=CHUNK_LOST) for slot in lost)
        self._result: StepResult | None = None
        self.was_asked = False
        """Whether the result was asked for, with or without success."""
        self._finished: Callable[[float], None] = lambda read_s: None

    def when_finished(self, finished: Callable[[float], None]) -> None:
        """Called once with the seconds that reading took, the wait left out."""
        self._finished = finished

    def result(self) -> StepResult:
        """See PendingStep.result."""
        self.was_asked = True
        if self._result is None:
            self._result = self._read()
        return self._result

    def _read(self) -> StepResult:
        self._end.wait()
        begun = time.perf_counter()
        results = {scores.row: scores.read(self._scheduled[scores.row].slot) for scores in self._prompts}
        if self._drawn is not None:
            token_ids, valid = (part.tolist() for part in self._drawn.download.read())
            for row, drawn in self._rows_drawn(self._drawn, token_ids, valid):
                results[row] = _merge(results[row], drawn) if row in results else drawn
        self._finished(time.perf_counter() - begun)
        return StepResult(self._step_id, (*results.values(), *self._lost))

    def _rows_drawn(self, drawn: DrawnTokens, token_ids: list[int], valid: list[bool]) -> list[tuple[int, SlotResult]]:
        for at, counts in drawn.counts:
            if valid[at]:
                counts.add(token_ids[at])
        logprobs = dict(zip(drawn.scored, drawn.scores.read(), strict=True)) if drawn.scores is not None else {}
        owners = iter(drawn.owners)
        results: list[tuple[int, SlotResult]] = []
        at = 0
        for row, plan in enumerate(self._scheduled):
            if not plan.samples:
                continue
            if plan.draft_token_ids:
                end = at + 1 + len(plan.draft_token_ids)
                result = _verified(plan, token_ids[at:end], valid[at:end])
                owner = next(owners)
                if result.token_ids:
                    self._learn_draft(plan.slot, owner, plan.start + 1, result.token_ids)
                at = end
            else:
                logprob = logprobs.get(at)
                scores = () if logprob is None else (logprob,)
                ok = valid[at]
                result = SlotResult(plan.slot, (token_ids[at],), scores) if ok else _failed(plan.slot)
                at += 1
            results.append((row, result))
        return results


def _verified(plan: ScheduledSlot, token_ids: list[int], valid: list[bool]) -> SlotResult:
    """The drawn tokens up to and including the first that differs from its guess."""
    num_kept = 1
    for token_id, guess in zip(token_ids, plan.draft_token_ids, strict=False):
        if token_id != guess:
            break
        num_kept += 1
    if not all(valid[:num_kept]):
        return _failed(plan.slot)
    return SlotResult(plan.slot, tuple(token_ids[:num_kept]))


def _failed(slot: int) -> SlotResult:
    return SlotResult(slot, failure=NOT_FINITE)


def _merge(scored: SlotResult, drawn: SlotResult) -> SlotResult:
    if drawn.failure:
        return drawn
    if scored.failure:
        return scored
    return SlotResult(drawn.slot, drawn.token_ids, drawn.logprobs, scored.prompt_offset, scored.prompt_logprobs)
