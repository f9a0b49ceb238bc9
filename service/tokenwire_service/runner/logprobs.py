"""Log-probabilities from raw logits: of the chosen token, of the likeliest, of named ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenwire_service.core.events import TokenLogprob
from tokenwire_service.core.params import LogprobsParams
from tokenwire_service.runner.transfer import Download, upload
from tokenwire_service.runner.vocabulary import Vocabulary


class TokenScores:
    """Scores of R tokens, computed on construction and read when they have reached the host."""

    def __init__(
        self, logits: Tensor, token_ids: Tensor, params: Sequence[LogprobsParams], vocabulary: Vocabulary
    ) -> None:
        """fp32 logits [R, V'] before any edit, token_ids int64 [R]."""
        self._params = params
        tokens = token_ids.unsqueeze(-1)
        if any(p.token_ids for p in params):
            tokens = torch.cat([tokens, _padded([p.token_ids for p in params], logits)], dim=-1)
        found = vocabulary.score(logits, tokens, max(p.top_n for p in params))
        normalizer = found.normalizer.unsqueeze(-1)
        parts = [
            found.normalizer.isfinite(),
            found.values - normalizer,
            found.ranks,
            found.top_values - normalizer,
            found.top_ids,
        ]
        self._download = Download(parts)

    def read(self) -> list[TokenLogprob | None]:
        """One entry per row, None where the row is not finite."""
        finite, logprobs, ranks, top_logprobs, top_ids = [part.tolist() for part in self._download.read()]
        return [
            TokenLogprob(
                logprob=logprobs[row][0],
                rank=ranks[row][0],
                top_token_ids=(*_sorted(top_logprobs[row], top_ids[row])[: wanted.top_n], *wanted.token_ids),
                top_logprobs=(*top_logprobs[row][: wanted.top_n], *logprobs[row][1 : 1 + len(wanted.token_ids)]),
                top_ranks=(*_ranks(top_logprobs[row])[: wanted.top_n], *ranks[row][1 : 1 + len(wanted.token_ids)]),
            )
            if finite[row]
            else None
            for row, wanted in enumerate(self._params)
        ]


def _sorted(logprobs: list[float], token_ids: list[int]) -> list[int]:
    """The lower id first on ties."""
    return [token_id for _, token_id in sorted((-v, i) for v, i in zip(logprobs, token_ids, strict=True))]


def _ranks(logprobs: list[float]) -> list[int]:
    """Of values in descending order, equal for equal ones."""
    return [logprobs.index(value) + 1 for value in logprobs]


def _padded(lists: Sequence[tuple[int, ...]], like: Tensor) -> Tensor:
    """int64 [R, longest], token 0 where a list is shorter."""
    table = np.zeros((len(lists), max(len(ids) for ids in lists)), dtype=np.int64)
    for row, ids in enumerate(lists):
        table[row, : len(ids)] = ids
    return upload(table, like.device)
