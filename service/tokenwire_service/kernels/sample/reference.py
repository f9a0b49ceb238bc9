"""The meaning of sampling, in plain PyTorch. Shapes: S rows, V vocabulary, P sparse entries.

Every result of a row depends on that row alone, bit for bit: batching never changes what is drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenwire_service.kernels.sample.params import Choice, DrawParams, LogitEdits, Penalties, TokenMask
from tokenwire_service.kernels.sample.philox import uniform

_FIRST_CANDIDATES = 256
"""How many of the likeliest tokens top-p looks at before it looks at more."""
_GROWTH = 16
_DRAW_TILE = 256
_MIN_TEMPERATURE = 1e-6


def edit_logits(logits: Tensor, edits: LogitEdits) -> None:
    """Apply penalties, bias, allowed sets and masks to fp32 logits [S, V], in place, in the order of SamplingParams."""
    if edits.penalties is not None:
        _penalize(logits, edits.penalties)
    if edits.bias is not None:
        rows, token_ids, values = edits.bias
        logits.index_put_((rows, token_ids), values, accumulate=True)
    if edits.allowed is not None:
        _keep_only(logits, edits.allowed)
    if edits.forbidden is not None:
        logits[edits.forbidden.rows, edits.forbidden.token_ids] = -torch.inf


def greedy(logits: Tensor) -> Choice:
    """Likeliest token of each row of fp32 logits [S, V], lowest id on ties. argmax takes NaN for the largest."""
    token_ids = logits.argmax(dim=-1)
    return Choice(token_ids, logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1).isfinite())


def draw(logits: Tensor, params: DrawParams) -> Choice:
    """Draw one token per row from fp32 logits [S, V] (overwritten). NaN, +inf or a wholly masked row poison the row's
    maximum, so that the drawn token's weight tells."""
    scaled = logits.sub_(logits.amax(dim=-1, keepdim=True))
    scaled.div_(params.temperature.clamp_min(_MIN_TEMPERATURE).unsqueeze(-1))
    for mask in (_top_k_mask, _typical_mask, _top_p_mask, _min_p_mask):
        mask(scaled, params)
    weights = scaled.exp_()
    token_ids = _invert(weights, uniform(params.seed, params.candidate, params.position))
    return Choice(token_ids, weights.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) > 0)


def log_normalizer(logits: Tensor) -> Tensor:
    """Normaliser of each row: fp32 [S, V] → log-sum-exp [S]; a token's log-probability is its logit minus this."""
    return torch.logsumexp(logits, dim=-1)


def ranks(logits: Tensor, values: Tensor) -> Tensor:
    """1 + number of tokens strictly likelier: fp32 [S, V] and values [S, J] → int64 [S, J]."""
    return torch.stack([(logits > column.unsqueeze(-1)).sum(dim=-1) + 1 for column in values.unbind(-1)], dim=-1)


def _penalize(logits: Tensor, p: Penalties) -> None:
    values = logits[p.rows, p.token_ids]
    repetition = p.repetition[p.rows]
    values = torch.where(values > 0, values / repetition, values * repetition)
    generated = p.generated_counts
    values -= generated * p.frequency[p.rows] + (generated > 0) * p.presence[p.rows]
    values -= p.total_counts / p.lengths[p.rows] * p.context_frequency[p.rows]
    logits[p.rows, p.token_ids] = values


def _keep_only(logits: Tensor, allowed: TokenMask) -> None:
    kept = logits[allowed.rows, allowed.token_ids]
    logits[allowed.rows] = -torch.inf
    logits[allowed.rows, allowed.token_ids] = kept


def _top_k_mask(scaled: Tensor, params: DrawParams) -> None:
    """Rows with top_k: drop what is below the k-th value (ties stay)."""
    if not params.top_k_rows:
        return
    rows = _index(params.top_k_rows, scaled)
    chosen = scaled[rows]
    vocab = scaled.shape[-1]
    limits = params.top_k[rows].clamp(max=vocab)
    best = chosen.topk(int(limits.max()), dim=-1).values
    threshold = best.gather(-1, (limits - 1).unsqueeze(-1))
    scaled[rows] = chosen.masked_fill_(chosen < threshold, -torch.inf)


def _typical_mask(scaled: Tensor, params: DrawParams) -> None:
    """Rows with typical_p: keep the tokens whose surprise is nearest the entropy, up to a mass of typical_p."""
    if not params.typical_rows:
        return
    rows = _index(params.typical_rows, scaled)
    chosen = scaled[rows]
    log_p = chosen.log_softmax(dim=-1)
    p = log_p.exp()
    entropy = -torch.where(p > 0, p * log_p, 0.0).sum(dim=-1, keepdim=True)
    distance = (log_p + entropy).abs()
    order = distance.argsort(dim=-1, stable=True)
    mass = p.gather(-1, order).double().cumsum(dim=-1)
    last = (mass < params.typical_p[rows].unsqueeze(-1)).sum(dim=-1, keepdim=True).clamp(max=scaled.shape[-1] - 1)
    threshold = distance.gather(-1, order.gather(-1, last))
    scaled[rows] = chosen.masked_fill_(distance > threshold, -torch.inf)


def _top_p_mask(scaled: Tensor, params: DrawParams) -> None:
    """Rows with top_p: keep the smallest set of likeliest tokens whose mass reaches top_p (ties of the last stay).

    Sorts only as many of the likeliest tokens as it needs, so a peaked distribution costs one partial selection.
    """
    pending = params.top_p_rows
    vocab = scaled.shape[-1]
    count = min(_FIRST_CANDIDATES, vocab)
    while pending:
        rows = _index(pending, scaled)
        chosen = scaled[rows]
        best = chosen.topk(count, dim=-1).values
        wanted = params.top_p[rows].double() * chosen.exp().double().sum(dim=-1)
        mass = best.exp().double().cumsum(dim=-1)
        last = (mass < wanted.unsqueeze(-1)).sum(dim=-1, keepdim=True)
        done = (last < count).squeeze(-1) | (count == vocab)
        threshold = best.gather(-1, last.clamp(max=count - 1))
        finished = chosen.masked_fill(chosen < threshold, -torch.inf)
        scaled[rows] = torch.where(done.unsqueeze(-1), finished, chosen)
        pending = tuple(row for row, ended in zip(pending, done.tolist(), strict=True) if not ended)
        count = min(count * _GROWTH, vocab)


def _min_p_mask(scaled: Tensor, params: DrawParams) -> None:
    """Rows with min_p: drop what is less likely than min_p times the likeliest that is left."""
    if not params.min_p_rows:
        return
    rows = _index(params.min_p_rows, scaled)
    chosen = scaled[rows]
    threshold = chosen.amax(dim=-1, keepdim=True) + params.min_p[rows].log().unsqueeze(-1)
    scaled[rows] = chosen.masked_fill_(chosen < threshold, -torch.inf)


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    """Inverse of the cumulative weights [S, V] at draws [S] in (0, 1): by tiles, so that only one is summed finely."""
    rows, vocab = weights.shape
    padded = torch.nn.functional.pad(weights, (0, -vocab % _DRAW_TILE)).view(rows, -1, _DRAW_TILE)
    ends = padded.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = draws * ends[:, -1]
    tile = _first_above(ends, target)
    start = torch.where(tile > 0, ends.gather(-1, (tile - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1), 0.0)
    fine = padded[torch.arange(rows, device=weights.device), tile].double()
    inner = fine.cumsum(dim=-1)
    # The two sums may differ in the last bit: never run past the tile's last token of positive weight.
    last = _DRAW_TILE - 1 - (fine > 0).to(torch.int8).flip(-1).argmax(dim=-1)
    within = torch.minimum(_first_above(inner, (target - start).clamp(min=0.0)), last)
    return (tile * _DRAW_TILE + within).clamp(max=vocab - 1)


def _first_above(ends: Tensor, target: Tensor) -> Tensor:
    """Index of the first cumulative value above the target, int64 [S]; the last index when none is."""
    found: Tensor = torch.searchsorted(ends, target.unsqueeze(-1), right=True).squeeze(-1)
    return found.clamp(max=ends.shape[-1] - 1)


def _index(rows: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=like.device)
