"""Speculation: which decode rows carry guesses at their next tokens, and what comes of them.

Exact: the runner draws a token at every guessed position with the random numbers of that position, from logits of the
very tokens before it, and a guess stands only when it equals what was drawn. Output is what it would have been, greedy
or sampled; only the number of steps differs.
"""

from __future__ import annotations

from tokenwire_service.core.events import Finish
from tokenwire_service.scheduling.block_manager import BlockManager
from tokenwire_service.scheduling.limits import SchedulerLimits
from tokenwire_service.scheduling.output import ScheduledSlot
from tokenwire_service.scheduling.prompt_lookup import Drafter
from tokenwire_service.scheduling.request_book import RequestBook
from tokenwire_service.scheduling.sequence import Sequence


class Speculation:
    """Guesses take what budget and blocks have to spare, and never anybody's place."""

    def __init__(self, limits: SchedulerLimits, blocks: BlockManager, book: RequestBook) -> None:
        self._limits = limits
        self._blocks = blocks
        self._book = book

    def active(self, num_running: int) -> bool:
        """Whether a batch of this size has any drafts."""
        return self._limits.num_draft_tokens > 0 and num_running <= self._limits.draft_max_batch

    def awaits_tokens(self, sequence: Sequence) -> bool:
        """Whether the sequence's next row gains by knowing what the steps in flight bring: a draft is among them, or
        the end of the text known so far occurred before."""
        if sequence.num_draft_tokens:
            return True
        if sequence.num_tokens <= sequence.num_prompt_tokens or not _may_draft(sequence, len(sequence.token_ids)):
            return False
        return _drafter(sequence).sees_repeat(sequence.token_ids)

    def draft(self, sequence: Sequence, budget: int, num_running: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Guesses for the row of a sequence that has blocks for its known tokens, and the new blocks they need."""
        num_tokens = sequence.num_tokens
        # Each that runs has its own token first; no guess is past the last token asked for.
        room = min(self._limits.num_draft_tokens, budget - num_running, sequence.max_num_tokens - num_tokens - 1)
        if room < 1 or not _may_draft(sequence, num_tokens) or sequence.num_pending_tokens:
            return (), ()
        guesses = _drafter(sequence).propose(sequence.token_ids, room)
        new_block_ids = self._blocks.extend_table(sequence, num_tokens + len(guesses), num_spare=num_running)
        if new_block_ids is None:
            return guesses[: sequence.capacity - num_tokens], ()
        return guesses, new_block_ids

    def confirm(self, row: ScheduledSlot, sequence: Sequence, drawn: tuple[int, ...]) -> tuple[int, Finish | None]:
        """Take the drawn tokens up to the candidate's end: how many these are, and the end. What was computed past the
        last of them is overwritten by the steps that follow; the blocks stay.

        Raises ValueError when `drawn` is not guesses that hold and one token more.
        """
        guesses, num_accepted = row.draft_token_ids, len(drawn) - 1
        if not 0 <= num_accepted <= len(guesses) or drawn[:-1] != guesses[:num_accepted]:
            raise ValueError(f"slot {row.slot}: a row with a draft brings the guesses that hold and one token more")
        start = len(sequence.token_ids)
        finish = next((end for token_id in drawn if (end := sequence.append_token(token_id)) is not None), None)
        sequence.num_tokens = num_tokens = len(sequence.token_ids)
        num_taken = num_tokens - start
        sequence.num_draft_tokens = 0
        sequence.num_computed_tokens = sequence.num_confirmed_tokens = row.start + num_taken
        self._blocks.publish(sequence)
        _drafter(sequence).learn_outcome(len(guesses), num_accepted, num_tokens)
        self._book.draft_verified(sequence.state, len(guesses), min(num_accepted, num_taken))
        return num_taken, finish


def _may_draft(sequence: Sequence, num_tokens: int) -> bool:
    return sequence.draft_from is not None and num_tokens >= sequence.draft_from


def _drafter(sequence: Sequence) -> Drafter:
    if sequence.drafter is None:
        sequence.drafter = Drafter()
    return sequence.drafter
