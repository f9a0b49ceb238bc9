"""From a stream of checkpoint tensors to a Decoder, with proof that nothing was missing and nothing left over."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tokenwire_service.errors import UnsupportedModelError, WeightsError
from tokenwire_service.kernels.backend import Backend, select_backend
from tokenwire_service.kernels.linear import pack_table, pack_weight
from tokenwire_service.models.assembly import Weights, assemble
from tokenwire_service.models.checkpoint import Cut, Parameter, Part, Use, checkpoint_tensors, is_redundant, parameters
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.models.spec import ModelSpec
from tokenwire_service.parallel.group import TensorParallelGroup

__all__ = ["checkpoint_tensors", "load_weights"]


def load_weights(
    spec: ModelSpec,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    group: TensorParallelGroup,
    backend: Backend | None = None,
) -> Decoder:
    """Consumes (Hugging Face name, tensor) pairs in any order; casts, cuts, fuses and packs each as it comes.

    A tensor may be dropped by its producer once the next one is asked for. `dtype` is what the model is held in; the
    backend (select_backend's for the CPU unless given) says what linear weights are packed to. Raises WeightsError
    naming the tensor that is missing, left over, repeated or of the wrong shape, and UnsupportedModelError when the
    model does not divide by the group.
    """
    _check_divides(spec, group)
    backend = backend or select_backend(torch.device("cpu"), dtype)
    loader = _Loader(spec, dtype, group, backend)
    for name, tensor in tensors:
        loader.add(name, tensor)
    return assemble(spec, loader.finish(), group, backend)


class _Loader:
    """Fills parameters part by part; a linear weight is packed, and its plain copy dropped, with its last part."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, group: TensorParallelGroup, backend: Backend) -> None:
        self._spec, self._group, self._backend = spec, group, backend
        self._dtype = backend.compute_dtype or dtype
        self._waiting = {part.name: (parameter, part) for parameter in parameters(spec) for part in parameter.parts}
        self._expected = frozenset(self._waiting)
        self._filling: dict[str, Tensor] = {}
        self._weights = Weights({}, {})

    def add(self, name: str, tensor: Tensor) -> None:
        if name not in self._waiting:
            self._refuse_unless_redundant(name)
            return
        parameter, part = self._waiting.pop(name)
        _check_tensor(part, tensor)
        whole = self._filling.get(parameter.name)
        if whole is None:
            whole = self._filling[parameter.name] = self._allocate(parameter)
        self._copy(parameter, part, tensor, whole)
        if not any(other.name in self._waiting for other in parameter.parts):
            self._store(parameter, self._filling.pop(parameter.name))

    def finish(self) -> Weights:
        """Raises WeightsError when anything is still missing."""
        if self._waiting:
            name, (_, part) = next(iter(self._waiting.items()))
            more = f" (and {len(self._waiting) - 1} more)" if len(self._waiting) > 1 else ""
            raise WeightsError(
                f"the weights lack tensor '{name}' of shape {list(part.shape)}{more}; fetch the model's files again, "
                "all of one revision"
            )
        return self._weights

    def _refuse_unless_redundant(self, name: str) -> None:
        if name in self._expected:
            raise WeightsError(f"the weights hold tensor '{name[:200]}' twice")
        if not is_redundant(self._spec, name):
            raise WeightsError(
                f"the weights hold tensor '{name[:200]}', which a {self._spec.architecture} does not have"
            )

    def _allocate(self, parameter: Parameter) -> Tensor:
        rows = sum(self._rows(part) for part in parameter.parts)
        shape = (rows, *(self._columns(parameter.parts[0])))
        # One rank's parts cover everything. Of several, padding of the vocabulary and another rank's bias stay zero.
        make = torch.empty if self._group.size == 1 else torch.zeros
        return make(shape, dtype=self._dtype, device=self._backend.device)

    def _copy(self, parameter: Parameter, part: Part, tensor: Tensor, whole: Tensor) -> None:
        before = parameter.parts[: parameter.parts.index(part)]
        offset = sum(self._rows(other) for other in before)
        piece = tensor[self._local(part)]
        if part.cut is Cut.COLUMNS:
            piece = piece[:, self._group.split(part.shape[1])]
        target = whole[offset : offset + len(piece)]
        target.copy_(piece)
        if self._dtype is torch.float16 and not target.isfinite().all():
            raise WeightsError(
                f"tensor '{part.name}' has values beyond float16's range; use --dtype float32 or bfloat16"
            )

    def _store(self, parameter: Parameter, whole: Tensor) -> None:
        if parameter.use is Use.LINEAR:
            self._weights.linear[parameter.name] = pack_weight(whole, self._backend)
        elif parameter.use is Use.TABLE:
            self._weights.linear[parameter.name] = pack_table(whole, self._backend)
        else:
            self._weights.plain[parameter.name] = whole

    def _rows(self, part: Part) -> int:
        """Rows of this rank's piece, padding included."""
        if part.cut is Cut.VOCAB_ROWS:
            return -(-part.shape[0] // self._group.size)
        if part.cut is Cut.FIRST_RANK:
            return part.shape[0]
        span = self._local(part)
        return int(span.stop - span.start)

    def _columns(self, part: Part) -> tuple[int, ...]:
        if part.cut is Cut.COLUMNS:
            return (part.shape[1] // self._group.size,)
        return part.shape[1:]

    def _local(self, part: Part) -> slice:
        """This rank's rows of the checkpoint tensor."""
        rows, rank, size = part.shape[0], self._group.rank, self._group.size
        if part.cut is Cut.ROWS:
            return self._group.split(rows)
        if part.cut is Cut.KV_ROWS:
            heads = self._spec.num_kv_heads
            first, count = rank * heads // size, max(heads // size, 1)
            return slice(first * self._spec.head_dim, (first + count) * self._spec.head_dim)
        if part.cut is Cut.VOCAB_ROWS:
            each = -(-rows // size)
            return slice(min(rank * each, rows), min((rank + 1) * each, rows))
        if part.cut is Cut.FIRST_RANK and rank > 0:
            return slice(0, 0)
        return slice(0, rows)


def _check_tensor(part: Part, tensor: Tensor) -> None:
    if tuple(tensor.shape) != part.shape:
        raise WeightsError(
            f"tensor '{part.name}' has shape {list(tensor.shape)}, config.json asks for {list(part.shape)}"
        )
    if not tensor.dtype.is_floating_point:
        raise WeightsError(f"tensor '{part.name}' holds {tensor.dtype}; use an unquantized checkpoint or a .gguf file")


def _check_divides(spec: ModelSpec, group: TensorParallelGroup) -> None:
    size, heads = group.size, spec.num_kv_heads
    if spec.num_heads % size or spec.intermediate_size % size or (heads % size and size % heads):
        raise UnsupportedModelError(
            f"{spec.architecture} with {spec.num_heads} heads, {heads} KV heads and intermediate size "
            f"{spec.intermediate_size} does not divide over {size} shards; choose another --num-shard"
        )
