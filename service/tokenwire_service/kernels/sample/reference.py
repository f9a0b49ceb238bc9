"""The meaning of sampling, in plain PyTorch. Shapes: S rows, V vocabulary, P sparse entries.

Every result of a row depends on that row alone, bit for bit: batching never changes what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tokenwire_service.kernels.sample.params import (
    Choice,
    DrawParams,
    LogitEdits,
    Penalties,
    SampleColumns,
    Scores,
    TokenBits,
    TokenMask,
)
from tokenwire_service.kernels.sample.philox import uniform

_TINY = torch.finfo(torch.float32).tiny
_TILE = 256
"""Weights summed at once."""
_MIN_TEMPERATURE = 1e-6
_LEAST_EXPONENT = -80.0
"""Anything less likely weighs e**-80, far below the finest draw: exp() is slow where its result is no normal number."""
_NOTHING = 1e-34
"""A weight above e**-80 that is as little."""


def edit_logits(logits: Tensor, edits: LogitEdits) -> None:
    """Apply penalties, bias, allowed sets and masks to fp32 logits [S, V], in place, in the order of SamplingParams."""
    if edits.penalties is not None:
        _penalize(logits, edits.penalties)
    if edits.bias is not None:
        rows, token_ids, values = edits.bias
        logits.index_put_((rows, token_ids), values, accumulate=True)
    if edits.allowed is not None:
        _keep_only(logits, edits.allowed)
    if edits.allowed_bits is not None:
        _keep_bits(logits, edits.allowed_bits)
    if edits.forbidden is not None:
        logits[edits.forbidden.rows, edits.forbidden.token_ids] = -torch.inf


def greedy(logits: Tensor) -> Choice:
    """Likeliest token of each row of fp32 logits [S, V], lowest id on ties. argmax takes NaN for the largest."""
    token_ids = argmax(logits)
    return Choice(token_ids, logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1).isfinite())


def draw(logits: Tensor, params: DrawParams) -> Choice:
    """Draw one token per row from fp32 logits [S, V] (overwritten). NaN, +inf or a wholly masked row show in its
    maximum."""
    valid = logits.amax(dim=-1).isfinite()
    weights = filtered_weights(logits, params)
    token_ids = _invert(weights, uniform(params.seed, params.candidate, params.position))
    return Choice(token_ids.clamp_(max=logits.shape[-1] - 1), valid)


def sample_rows(logits: Tensor, columns: SampleColumns, token_ids: Tensor, valid: Tensor) -> None:
    """Choose one token per row of fp32 logits [S, V] (overwritten), greedily or by drawing, as its columns say; written
    to token_ids int64 [S] and valid bool [S]."""
    drawing = _where(columns.temperature > 0)
    if not drawing:
        chosen = greedy(logits)
    elif len(drawing) == len(logits):
        chosen = draw(logits, _draw_params(columns))
    else:
        drawn = torch.tensor(drawing, dtype=torch.int64, device=logits.device)
        chosen = greedy(logits)
        chosen.token_ids[drawn], chosen.valid[drawn] = draw(logits[drawn], _draw_params(columns).only(drawing))
    token_ids.copy_(chosen.token_ids)
    valid.copy_(chosen.valid)


def _draw_params(columns: SampleColumns) -> DrawParams:
    return DrawParams(
        temperature=columns.temperature,
        seed=columns.seed,
        candidate=columns.candidate.long(),
        position=columns.position.long(),
        top_k=columns.top_k.long(),
        top_p=columns.top_p,
        min_p=columns.min_p,
        typical_p=torch.ones_like(columns.top_p),
        top_k_rows=_where(columns.top_k > 0),
        top_p_rows=_where(columns.top_p < 1),
        min_p_rows=_where(columns.min_p > 0),
    )


def _where(mask: Tensor) -> tuple[int, ...]:
    return tuple(at for at, is_set in enumerate(mask.tolist()) if is_set)


def filtered_weights(logits: Tensor, params: DrawParams) -> Tensor:
    """fp32 logits [S, V] (overwritten) → unnormalised probabilities after temperature and filters, the likeliest 1
    before filters, [S, V up to the next multiple of the tile]; what was dropped, and the padding, is 0."""
    weights = weigh(logits, logits.amax(dim=-1, keepdim=True), params.temperature)
    filter_rows(weights, _keep_top_k, params.top_k, params.top_k_rows)
    filter_rows(weights, keep_typical, params.typical_p, params.typical_rows)
    filter_rows(weights, _keep_top_p, params.top_p, params.top_p_rows)
    filter_rows(weights, _keep_min_p, params.min_p, params.min_p_rows)
    return weights


def weigh(logits: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
    """fp32 logits [S, V] (overwritten), the likeliest's [S, 1], temperature [S] → weights as of filtered_weights,
    before any filter."""
    scaled = logits.sub_(best).div_(temperature.clamp_min(_MIN_TEMPERATURE).unsqueeze(-1))
    weights = scaled.clamp_(min=_LEAST_EXPONENT).exp_()
    if padding := -weights.shape[-1] % _TILE:
        weights = torch.nn.functional.pad(weights, (0, padding))
    return weights


def filter_rows(weights: Tensor, keep: Callable[[Tensor, Tensor], None], values: Tensor, rows: tuple[int, ...]) -> None:
    """Apply `keep`, which zeroes what it drops, to the given rows in place; values [S] are its parameter."""
    if len(rows) == len(weights):
        keep(weights, values)
    elif rows:
        index = torch.tensor(rows, dtype=torch.int64, device=weights.device)
        part = weights.index_select(0, index)
        keep(part, values[index])
        weights.index_copy_(0, index, part)


def drop_below(weights: Tensor, cuts: Tensor) -> None:
    """weights [R, V] below their row's cut [R, 1] become 0. Row by row: several times faster on CPUs than a mask."""
    largest_dropped = cuts.nextafter(torch.zeros_like(cuts)).flatten().tolist()
    for row, value in zip(weights.unbind(), largest_dropped, strict=True):
        torch.nn.functional.threshold(row, value, 0.0, inplace=True)


def log_normalizer(logits: Tensor) -> Tensor:
    """Normaliser of each row: fp32 [S, V] → log-sum-exp [S]; a token's log-probability is its logit minus this."""
    return torch.logsumexp(logits, dim=-1)


def ranks(logits: Tensor, values: Tensor) -> Tensor:
    """1 + number of tokens strictly likelier: fp32 [S, V] and values [S, J] → int64 [S, J]."""
    return torch.stack([(logits > column.unsqueeze(-1)).sum(dim=-1) + 1 for column in values.unbind(-1)], dim=-1)


def score(logits: Tensor, token_ids: Tensor) -> Scores:
    """Log-probability and rank of token_ids int64 [S] in fp32 logits [S, V]."""
    values = logits.gather(-1, token_ids.unsqueeze(-1))
    return Scores(values.squeeze(-1) - log_normalizer(logits), ranks(logits, values).squeeze(-1))


def argmax(logits: Tensor) -> Tensor:
    """The first of the largest values of each row [S, V]: int64 [S]. By tiles where they divide the row: torch finds a
    maximum on CPUs ten times faster than where it is."""
    tile = math.gcd(logits.shape[-1], _TILE)
    if tile < 16:
        return logits.argmax(dim=-1)
    tiles = logits.view(len(logits), -1, tile)
    best = tiles.amax(dim=-1).argmax(dim=-1)
    within: Tensor = tiles[torch.arange(len(logits), device=logits.device), best].argmax(dim=-1)
    return best * tile + within


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


def _keep_bits(logits: Tensor, allowed: TokenBits) -> None:
    shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
    kept = (allowed.words.unsqueeze(-1) >> shifts & 1).flatten(-2)[:, : logits.shape[-1]] != 0
    logits.masked_fill_(~kept & allowed.rows.unsqueeze(-1), -torch.inf)


def _keep_top_k(weights: Tensor, top_k: Tensor) -> None:
    """Drop what is below the k-th value (ties stay)."""
    limits = top_k.clamp(max=weights.shape[-1])
    drop_below(weights, largest(weights, limits).gather(-1, (limits - 1).unsqueeze(-1)))


def largest(values: Tensor, counts: Tensor) -> Tensor:
    """values [S, V], counts int64 [S] → as many of the largest as any row has counts, in descending order."""
    return values.topk(min(int(counts.max()), values.shape[-1]), dim=-1).values


def keep_typical(weights: Tensor, typical_p: Tensor) -> None:
    """Keep the tokens whose surprise is nearest the entropy, up to a mass of typical_p."""
    p = weights.double()
    p /= p.cumsum(dim=-1)[:, -1:]
    log_p = p.log()
    entropy = -torch.where(p > 0, p * log_p, 0.0).cumsum(dim=-1)[:, -1:]
    distance = (log_p + entropy).abs()
    order = distance.argsort(dim=-1, stable=True)
    mass = p.gather(-1, order).cumsum(dim=-1)
    last = (mass < typical_p.unsqueeze(-1)).sum(dim=-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
    weights.mul_(distance <= distance.gather(-1, order.gather(-1, last)))


def _keep_top_p(weights: Tensor, top_p: Tensor) -> None:
    """Keep the smallest set of likeliest tokens whose mass reaches top_p (ties of the last stay).

    Only candidates are sorted. A token below (1 - top_p) / V of the mass is none: all of them together weigh less
    than what may be dropped. The same bound over the candidates leaves fewer.
    """
    mass = tile_masses(weights).sum(dim=-1)
    wanted = top_p.double() * mass
    candidates = likely(weights, mass, wanted, torch.full_like(mass, weights.shape[-1]))
    drop_below(weights, cut_at_mass(candidates, wanted))


def likely(weights: Tensor, mass: Tensor, wanted: Tensor, count: Tensor) -> Tensor:
    """weights [S, C], of rows of `count` tokens that weigh `mass`, float64 [S] each → those among which a cut that
    keeps `wanted` lies, at the front of each row, [S, C'], the rest zero."""
    floor = (0.999 * (mass - wanted) / count).to(weights.dtype).clamp_min(_TINY)
    return _compact(weights, weights >= floor.unsqueeze(-1))


def cut_at_mass(candidates: Tensor, wanted: Tensor) -> Tensor:
    """Weight of the last of the likeliest candidates [S, C] that together reach `wanted` float64 [S]: [S, 1]."""
    mass, count = candidates.double().sum(dim=-1), (candidates > 0).sum(dim=-1)
    best = likely(candidates, mass, wanted, count).sort(dim=-1, descending=True).values
    last = (best.double().cumsum(dim=-1) < wanted.unsqueeze(-1)).sum(dim=-1, keepdim=True)
    return best.gather(-1, last.clamp(max=best.shape[-1] - 1))


def _keep_min_p(weights: Tensor, min_p: Tensor) -> None:
    """Drop what is less likely than min_p times the likeliest that is left."""
    drop_below(weights, weights.amax(dim=-1, keepdim=True) * min_p.unsqueeze(-1))


def _compact(values: Tensor, mask: Tensor) -> Tensor:
    """The masked values of each row moved to its front: [R, V] → [R, C], the rest zero."""
    rows, columns = mask.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(values))
    starts = counts.cumsum(dim=0) - counts
    packed = values.new_zeros(len(values), max(int(counts.max()), 1))
    packed[rows, torch.arange(len(rows), device=rows.device) - starts[rows]] = values[rows, columns]
    return packed


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    """Inverse of the cumulative weights [S, V] at draws [S] in (0, 1)."""
    ends = tile_masses(weights).cumsum(dim=-1)
    return find(weights, ends, draws * ends[:, -1])


def find(weights: Tensor, ends: Tensor, target: Tensor) -> Tensor:
    """The first token, int64 [S], at which the cumulative weights [S, V] exceed target float64 [S], which must be below
    the last of `ends`, the cumulative masses of the tiles: only one of them is summed finely."""
    tile = first_above(ends, target)
    start = torch.where(tile > 0, ends.gather(-1, (tile - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1), 0.0)
    rows = torch.arange(len(weights), device=weights.device)
    fine = weights.view(len(weights), -1, _TILE)[rows, tile].double()
    # The two sums may differ in the last bits: never run past the tile's last token of weight, to one that is masked.
    last = _TILE - 1 - (fine > _NOTHING).to(torch.int8).flip(-1).argmax(dim=-1)
    within = torch.minimum(first_above(fine.cumsum(dim=-1), (target - start).clamp(min=0.0)), last)
    return tile * _TILE + within


def tile_masses(weights: Tensor) -> Tensor:
    """[S, V] → float64 [S, V / tile]. Reduced over short tiles: over a whole row the order of summation, hence the last
    bits, would depend on how many rows there are."""
    return weights.view(len(weights), -1, _TILE).sum(dim=-1).double()


def first_above(ends: Tensor, target: Tensor) -> Tensor:
    """Index of the first cumulative value above the target, int64 [S]; the last index when none is."""
    found: Tensor = torch.searchsorted(ends, target.unsqueeze(-1), right=True).squeeze(-1)
    return found.clamp(max=ends.shape[-1] - 1)
