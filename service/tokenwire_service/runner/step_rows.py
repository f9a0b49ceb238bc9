"""The rows of a plan as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenwire_service.scheduling.output import ScheduledSlot


@dataclass(frozen=True, slots=True)
class StepRows:
    """Columns [S] of the S rows; see ScheduledSlot."""

    slots: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    samples: NDArray[np.bool_]
    num_drafts: NDArray[np.int64]
    scores_prompt: bool
    """Whether any row scores its prompt."""

    @classmethod
    def of(cls, scheduled: Sequence[ScheduledSlot]) -> StepRows:
        """At least one row."""
        table = np.array(
            [(row.slot, row.start, row.num_tokens, row.samples, len(row.draft_token_ids)) for row in scheduled],
            dtype=np.int64,
        )
        slots, starts, counts, samples, num_drafts = np.ascontiguousarray(table.T)
        scores_prompt = any(row.score_prompt for row in scheduled)
        return cls(slots, starts, counts, samples.astype(np.bool_), num_drafts, scores_prompt)

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def ends(self) -> NDArray[np.int64]:
        """Length of each sequence up to what is computed."""
        return self.starts + self.counts

    @property
    def only_decodes(self) -> bool:
        """Whether every row computes its sequence's last token and draws the next."""
        return len(self) == int(self.counts.sum()) and bool(self.samples.all()) and not self.scores_prompt
