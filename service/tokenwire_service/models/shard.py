"""What of each checkpoint tensor one rank of a group holds, as its Cut says, and which numbers of ranks a model has."""

from __future__ import annotations

from dataclasses import dataclass

from tokenwire_service.errors import UnsupportedModelError
from tokenwire_service.models.checkpoint import Cut, Part
from tokenwire_service.models.spec import ModelSpec
from tokenwire_service.parallel.group import TensorParallelGroup

_EVERYTHING = slice(None)
_MAX_NAMED = 1024
_LARGE_PART, _VOCAB_MULTIPLE = 8192, 256


@dataclass(frozen=True, slots=True)
class RankSlice:
    """One rank's part of a checkpoint tensor."""

    rows: slice
    """Of dimension 0, within the tensor."""
    columns: slice
    """Of dimension 1, where the tensor is cut there."""
    num_rows: int
    """That the rank holds; more than it reads where the rest is zero."""
    row_shape: tuple[int, ...]


def rank_slice(part: Part, spec: ModelSpec, group: TensorParallelGroup) -> RankSlice:
    """The slice of `part` that this rank of `group` holds."""
    height, row_shape = part.shape[0], part.shape[1:]
    if part.cut in (Cut.COLUMNS, Cut.HEAD_COLUMNS):
        heads = _of_heads(query_heads(spec, group), spec)
        columns = heads if part.cut is Cut.HEAD_COLUMNS else group.split(part.shape[1])
        return RankSlice(slice(0, height), columns, height, (columns.stop - columns.start, *part.shape[2:]))
    if part.cut is Cut.VOCAB_ROWS:
        each = _vocab_rows(height, group.size)
        rows = slice(min(group.rank * each, height), min((group.rank + 1) * each, height))
        return RankSlice(rows, _EVERYTHING, each, row_shape)
    if part.cut is Cut.FIRST_RANK:
        return RankSlice(slice(0, height if group.rank == 0 else 0), _EVERYTHING, height, row_shape)
    rows = _rows(part, spec, group)
    return RankSlice(rows, _EVERYTHING, rows.stop - rows.start, row_shape)


def _vocab_rows(vocab_size: int, size: int) -> int:
    """Rows each rank holds: of large parts whole tiles of the sampler, so that it sums what it would on one rank."""
    rows = -(-vocab_size // size)
    return rows if size == 1 or rows < _LARGE_PART else rows + -rows % _VOCAB_MULTIPLE


def kv_heads(spec: ModelSpec, group: TensorParallelGroup) -> range:
    """The KV heads this rank holds: as even a share as whole heads allow; one that others hold too where there are more
    ranks than heads."""
    heads, rank, size = spec.num_kv_heads, group.rank, group.size
    first = rank * heads // size
    return range(first, max((rank + 1) * heads // size, first + 1))


def query_heads(spec: ModelSpec, group: TensorParallelGroup) -> range:
    """The query heads this rank computes: those of its KV heads, divided with the other ranks that hold them."""
    if spec.num_kv_heads < group.size:
        part = group.split(spec.num_heads)
        return range(part.start, part.stop)
    held, each = kv_heads(spec, group), spec.num_heads // spec.num_kv_heads
    return range(held.start * each, held.stop * each)


def _rows(part: Part, spec: ModelSpec, group: TensorParallelGroup) -> slice:
    if part.cut is Cut.ROWS:
        return group.split(part.shape[0])
    if part.cut is Cut.HEAD_ROWS:
        return _of_heads(query_heads(spec, group), spec)
    if part.cut is Cut.KV_ROWS:
        return _of_heads(kv_heads(spec, group), spec)
    return slice(0, part.shape[0])


def _of_heads(heads: range, spec: ModelSpec) -> slice:
    """Of a dimension that holds the heads one after the other."""
    return slice(heads.start * spec.head_dim, heads.stop * spec.head_dim)


def check_divides(spec: ModelSpec, size: int) -> None:
    """Raises UnsupportedModelError, with the sizes that would do, when the model cannot be cut over `size` ranks."""
    if not _divides(spec, size):
        possible = [str(other) for other in range(1, min(spec.num_heads, _MAX_NAMED) + 1) if _divides(spec, other)]
        raise UnsupportedModelError(
            f"--num-shard {size}: {spec.architecture} with {spec.num_heads} heads, {spec.num_kv_heads} KV heads and "
            f"intermediate size {spec.intermediate_size} does not divide over {size} shards; use {_either(possible)}"
        )


def _divides(spec: ModelSpec, size: int) -> bool:
    repeated = spec.num_kv_heads < size
    return not (spec.intermediate_size % size or (repeated and (spec.num_heads % size or size % spec.num_kv_heads)))


def _either(options: list[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"
