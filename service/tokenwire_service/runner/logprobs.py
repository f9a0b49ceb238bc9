"""Log-probabilities from raw logits: of the chosen token, of the likeliest, of named ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tokenwire_service.core.events import TokenLogprob
from tokenwire_service.core.params import LogprobsParams
from tokenwire_service.kernels import sample


def score_tokens(logits: Tensor, token_ids: Tensor, params: Sequence[LogprobsParams]) -> list[TokenLogprob | None]:
    """fp32 logits [R, V] before any edit, token_ids int64 [R] → one entry per row, None where the row is not finite."""
    normalizer = sample.log_normalizer(logits)
    finite = normalizer.isfinite().tolist()
    values = logits.gather(-1, token_ids.unsqueeze(-1))
    ranks = sample.ranks(logits, values).flatten().tolist()
    logprobs = (values.squeeze(-1) - normalizer).tolist()
    tops = _top(logits, normalizer, max(p.top_n for p in params))
    scores: list[TokenLogprob | None] = []
    for row, wanted in enumerate(params):
        if not finite[row]:
            scores.append(None)
            continue
        top_ids, top_logprobs, top_ranks = (
            tops[0][row][: wanted.top_n],
            tops[1][row][: wanted.top_n],
            tops[2][row][: wanted.top_n],
        )
        if wanted.token_ids:
            named_logprobs, named_ranks = _named(logits[row], normalizer[row], wanted.token_ids)
            top_logprobs, top_ranks = top_logprobs + named_logprobs, top_ranks + named_ranks
        scores.append(
            TokenLogprob(
                logprob=logprobs[row],
                rank=ranks[row],
                top_token_ids=(*top_ids, *wanted.token_ids),
                top_logprobs=tuple(top_logprobs),
                top_ranks=tuple(top_ranks),
            )
        )
    return scores


def _top(logits: Tensor, normalizer: Tensor, count: int) -> tuple[list[list[int]], list[list[float]], list[list[int]]]:
    """Ids, log-probabilities and ranks of the likeliest tokens of each row, best first; the lower id first on ties."""
    if count == 0:
        empty: list[list[int]] = [[] for _ in range(len(logits))]
        return empty, [[] for _ in range(len(logits))], empty
    best = logits.topk(min(count, logits.shape[-1]), dim=-1)
    values = (best.values - normalizer.unsqueeze(-1)).tolist()
    ids: list[list[int]] = []
    ranks: list[list[int]] = []
    for row_values, row_ids in zip(values, best.indices.tolist(), strict=True):
        ids.append([token_id for _, token_id in sorted((-v, i) for v, i in zip(row_values, row_ids, strict=True))])
        ranks.append([row_values.index(value) + 1 for value in row_values])
    return ids, values, ranks


def _named(logits: Tensor, normalizer: Tensor, token_ids: tuple[int, ...]) -> tuple[list[float], list[int]]:
    values = logits[list(token_ids)]
    return (values - normalizer).tolist(), sample.ranks(logits.unsqueeze(0), values.unsqueeze(0)).flatten().tolist()
