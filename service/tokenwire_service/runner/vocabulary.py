"""What the sampler asks about logits, over a whole vocabulary or one rank's part of it. Shapes: S rows, J tokens."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwire_service.kernels import sample
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.sample import sharded
from tokenwire_service.layers.embedding import VocabParallelHead


class Vocabulary(Protocol):
    """Logits are float32 [S, V'], those of the tokens this rank holds; token ids are of the whole vocabulary.

    With several ranks all but `local_ids` and `edit_logits` are collectives: every rank calls them with the same rows,
    and gets the same result.
    """

    width: int
    """V'."""

    def local_ids(self, token_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        """Columns of the tokens that are here, and which those are; None for all."""
        ...

    def edit_logits(self, logits: Tensor, edits: sample.LogitEdits) -> None:
        """As the kernel; token ids in edits are columns."""
        ...

    def greedy(self, logits: Tensor) -> sample.Choice:
        """As the kernel."""
        ...

    def draw(self, logits: Tensor, params: sample.DrawParams) -> sample.Choice:
        """As the kernel."""
        ...

    def sample_rows(
        self, logits: Tensor, columns: sample.SampleColumns, token_ids: Tensor, valid: Tensor, *, edited: bool
    ) -> None:
        """As the kernel. `edited`: whether logits are other than the head computed them."""
        ...

    def score(self, logits: Tensor, token_ids: Tensor, top_n: int) -> sample.RowScores:
        """Of the tokens int64 [S, J] and of the top_n likeliest, or all where there are fewer."""
        ...


def make_vocabulary(head: VocabParallelHead, backend: Backend) -> Vocabulary:
    """The one whose logits `head` computes."""
    return WholeVocabulary(head.width, backend) if head.group.size == 1 else ShardedVocabulary(head, backend)


class WholeVocabulary:
    """One rank holds every token."""

    def __init__(self, width: int, backend: Backend) -> None:
        self.width = width
        self._backend = backend

    def local_ids(self, token_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        return token_ids, None

    def edit_logits(self, logits: Tensor, edits: sample.LogitEdits) -> None:
        sample.edit_logits(logits, edits, self._backend)

    def greedy(self, logits: Tensor) -> sample.Choice:
        return sample.greedy(logits, self._backend)

    def draw(self, logits: Tensor, params: sample.DrawParams) -> sample.Choice:
        return sample.draw(logits, params, self._backend)

    def sample_rows(
        self, logits: Tensor, columns: sample.SampleColumns, token_ids: Tensor, valid: Tensor, *, edited: bool
    ) -> None:
        sample.sample_rows(logits, columns, token_ids, valid, self._backend)

    def score(self, logits: Tensor, token_ids: Tensor, top_n: int) -> sample.RowScores:
        values = logits.gather(-1, token_ids)
        best = logits.topk(min(top_n, self.width), dim=-1)
        return sample.RowScores(
            normalizer=sample.log_normalizer(logits, self._backend),
            values=values,
            top_values=best.values,
            top_ids=best.indices,
            ranks=sample.ranks(logits, values, self._backend),
        )


class ShardedVocabulary:
    """This rank holds the tokens of `head`. What a backend draws with Triton, it draws from the gathered logits."""

    def __init__(self, head: VocabParallelHead, backend: Backend) -> None:
        self.width = head.width
        self._head_dtype = head.dtype
        self._vocab_size = head.vocab_size
        self._group = head.group
        self._backend = backend

    def local_ids(self, token_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        columns = token_ids - self._group.rank * self.width
        return columns, (columns >= 0) & (columns < self.width)

    def edit_logits(self, logits: Tensor, edits: sample.LogitEdits) -> None:
        sample.edit_logits(logits, edits, self._backend)

    def greedy(self, logits: Tensor) -> sample.Choice:
        return sharded.greedy(logits, self._group)

    def draw(self, logits: Tensor, params: sample.DrawParams) -> sample.Choice:
        if self._backend.triton:
            return sample.draw(self._gathered(logits), params, self._backend)
        return sharded.draw(logits, params, self._group)

    def sample_rows(
        self, logits: Tensor, columns: sample.SampleColumns, token_ids: Tensor, valid: Tensor, *, edited: bool
    ) -> None:
        if not edited:
            logits = logits.to(self._head_dtype)
        sample.sample_rows(self._gathered(logits), columns, token_ids, valid, self._backend)

    def score(self, logits: Tensor, token_ids: Tensor, top_n: int) -> sample.RowScores:
        return sharded.score(logits, token_ids, min(top_n, self._vocab_size), self._group)

    def _gathered(self, logits: Tensor) -> Tensor:
        return self._group.all_gather(logits)[:, : self._vocab_size].to(torch.float32)
