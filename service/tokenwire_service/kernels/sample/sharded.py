"""Sampling where each rank of a group holds the logits of its part of the vocabulary.

Shapes: S rows, V' tokens of this rank's part, the same on every rank, W ranks. Rank r holds tokens [r V', (r + 1) V').
Logits beyond the vocabulary are -inf. Every function is a collective: all ranks call it with the same rows and
parameters, and all get the same result, bit for bit, because what decides is computed from what was exchanged alone.
See docs/adr/0006.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenwire_service.kernels.sample import reference
from tokenwire_service.kernels.sample.params import Choice, DrawParams, RowScores
from tokenwire_service.kernels.sample.philox import uniform
from tokenwire_service.parallel.group import TensorParallelGroup


def greedy(logits: Tensor, group: TensorParallelGroup) -> Choice:
    """As reference.greedy, of fp32 logits [S, V']."""
    token_ids = reference.argmax(logits).unsqueeze(-1)
    # float64 holds every float32 and every token id.
    best = torch.cat([_finite_or_largest(logits.gather(-1, token_ids)), _globally(token_ids, logits, group)], dim=-1)
    values, ids = _by_rank(best, group).unbind(dim=-1)
    # The first of equals: the lowest rank has the lowest ids.
    winner = values.argmax(dim=-1, keepdim=True)
    return Choice(ids.gather(-1, winner).squeeze(-1).long(), values.gather(-1, winner).squeeze(-1).isfinite())


def draw(logits: Tensor, params: DrawParams, group: TensorParallelGroup) -> Choice:
    """As reference.draw, of fp32 logits [S, V'], which are overwritten.

    The same token as one rank would draw, unless the draw or a cut falls between sums that differ in their last bits.
    Masses are float32 within tiles of 256 tokens, which are one rank's where V' is a multiple, and float64 beyond.
    """
    best = group.all_max(_finite_or_largest(logits.amax(dim=-1, keepdim=True)))
    weights = reference.weigh(logits, best.to(logits.dtype), params.temperature)
    _filter(weights, logits.shape[-1], params, group)
    draws = uniform(params.seed, params.candidate, params.position)
    valid = best.isfinite().squeeze(-1)
    return Choice(torch.where(valid, invert(weights, draws, logits.shape[-1], group), 0), valid)


def score(logits: Tensor, token_ids: Tensor, top_n: int, group: TensorParallelGroup) -> RowScores:
    """fp32 logits [S, V'], token_ids int64 [S, J] of the whole vocabulary; n is no more than W V'."""
    local_ids = token_ids - group.rank * logits.shape[-1]
    is_here = (local_ids >= 0) & (local_ids < logits.shape[-1])
    named = logits.gather(-1, local_ids.clamp(0, logits.shape[-1] - 1)).masked_fill(~is_here, -torch.inf)
    top = logits.topk(min(top_n, logits.shape[-1]), dim=-1)
    parts = [reference.log_normalizer(logits).unsqueeze(-1), named, top.values, _globally(top.indices, logits, group)]
    sizes = [part.shape[-1] for part in parts]
    found = _by_rank(torch.cat([part.double() for part in parts], dim=-1), group)
    normalizers, named, top_values, top_ids = torch.split(found, sizes, dim=-1)
    # NaN shows in the normalizer; elsewhere it would hide what other ranks say.
    values = named.amax(dim=1).to(logits.dtype)
    order = _descending(top_values.flatten(1), top_ids.flatten(1))[:, :top_n]
    return RowScores(
        normalizer=normalizers.squeeze(-1).logsumexp(dim=-1).to(logits.dtype),
        values=values,
        top_values=top_values.flatten(1).gather(-1, order).to(logits.dtype),
        top_ids=top_ids.flatten(1).gather(-1, order).long(),
        ranks=group.all_reduce(reference.ranks(logits, values) - 1) + 1,
    )


def _filter(weights: Tensor, width: int, params: DrawParams, group: TensorParallelGroup) -> None:
    """reference.filtered_weights' filters; weights [S, V' up to the next multiple of the tile]."""

    def keep_top_k(rows: Tensor, top_k: Tensor) -> None:
        counts = top_k.clamp(max=width * group.size)
        candidates = group.all_gather(reference.largest(rows[:, :width], counts))
        reference.drop_below(rows, reference.largest(candidates, counts).gather(-1, (counts - 1).unsqueeze(-1)))

    def keep_typical(rows: Tensor, typical_p: Tensor) -> None:
        whole = group.all_gather(rows[:, :width])
        reference.keep_typical(whole, typical_p)
        rows[:, :width] = whole[:, group.rank * width : (group.rank + 1) * width]

    def keep_top_p(rows: Tensor, top_p: Tensor) -> None:
        mass = group.all_gather(reference.tile_masses(rows).sum(dim=-1, keepdim=True)).sum(dim=-1)
        wanted = top_p.double() * mass
        candidates = reference.likely(rows, mass, wanted, torch.full_like(mass, width * group.size))
        longest = int(group.all_max(torch.tensor([candidates.shape[-1]], device=rows.device)))
        padded = torch.nn.functional.pad(candidates, (0, longest - candidates.shape[-1]))
        reference.drop_below(rows, reference.cut_at_mass(group.all_gather(padded), wanted))

    def keep_min_p(rows: Tensor, min_p: Tensor) -> None:
        best = group.all_max(_finite_or_largest(rows.amax(dim=-1, keepdim=True))).to(rows.dtype)
        reference.drop_below(rows, best * min_p.unsqueeze(-1))

    reference.filter_rows(weights, keep_top_k, params.top_k, params.top_k_rows)
    reference.filter_rows(weights, keep_typical, params.typical_p, params.typical_rows)
    reference.filter_rows(weights, keep_top_p, params.top_p, params.top_p_rows)
    reference.filter_rows(weights, keep_min_p, params.min_p, params.min_p_rows)


def invert(weights: Tensor, draws: Tensor, width: int, group: TensorParallelGroup) -> Tensor:
    """The first token, int64 [S], at which the cumulative weights of all ranks, of which this one has [S, V' up to the
    next multiple of the tile], exceed the share draws float64 [S] of their sum: every rank knows every rank's mass, and
    the one that holds the target answers."""
    ends = reference.tile_masses(weights).cumsum(dim=-1)
    ranks_end = group.all_gather(ends[:, -1:]).cumsum(dim=-1)
    target = draws * ranks_end[:, -1]
    owner = reference.first_above(ranks_end, target)
    start = ranks_end[:, group.rank - 1] if group.rank else torch.zeros_like(target)
    # Rounding may put the target a little outside of the owner's part.
    last = ends[:, -1].nextafter(torch.zeros_like(target))
    local_ids = reference.find(weights, ends, torch.minimum((target - start).clamp(min=0.0), last))
    answers = torch.where(owner == group.rank, local_ids.clamp(max=width - 1) + group.rank * width, -1)
    return group.all_max(answers)


def _globally(local_ids: Tensor, logits: Tensor, group: TensorParallelGroup) -> Tensor:
    return (local_ids + group.rank * logits.shape[-1]).double()


def _finite_or_largest(values: Tensor) -> Tensor:
    """float64, +inf for NaN, which a maximum over ranks may lose."""
    return values.double().nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _by_rank(values: Tensor, group: TensorParallelGroup) -> Tensor:
    """[S, J] of each rank → [S, W, J]."""
    return group.all_gather(values).view(len(values), group.size, values.shape[-1])


def _descending(values: Tensor, token_ids: Tensor) -> Tensor:
    """Order [S, N] of values [S, N], the lower id first on ties."""
    by_id = token_ids.argsort(dim=-1, stable=True)
    return by_id.gather(-1, values.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True))
