"""From a stream of checkpoint tensors to a Decoder, with proof that nothing was missing and nothing left over."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tokenwire_service.errors import WeightsError
from tokenwire_service.kernels.backend import Backend, select_backend
from tokenwire_service.kernels.linear import pack_table, pack_weight
from tokenwire_service.models.assembly import Weights, assemble
from tokenwire_service.models.checkpoint import Parameter, Part, Use, checkpoint_tensors, is_redundant, parameters
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.models.filling import Filling
from tokenwire_service.models.shard import RankSlice, check_divides, rank_slice
from tokenwire_service.models.spec import ModelSpec
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.weights.stored import HeldTensor, StoredTensor

__all__ = ["checkpoint_tensors", "load_weights"]


def load_weights(
    spec: ModelSpec,
    tensors: Iterable[tuple[str, Tensor | StoredTensor]],
    dtype: torch.dtype,
    group: TensorParallelGroup,
    backend: Backend | None = None,
) -> Decoder:
    """Consumes (Hugging Face name, tensor) pairs in any order; cuts, casts, fuses and packs each as it comes.

    Of a stored tensor no more is read than this rank's slice, before the next one is asked for. `dtype` is what the
    model is held in; the backend (select_backend's for the CPU unless given) says what linear weights are packed to.
    Raises WeightsError naming the tensor that is missing, left over, repeated or of the wrong shape, and
    UnsupportedModelError when the model does not divide by the group.
    """
    check_divides(spec, group.size)
    backend = backend or select_backend(torch.device("cpu"), dtype)
    loader = _Loader(spec, dtype, group, backend)
    for name, tensor in tensors:
        loader.add(name, HeldTensor(tensor) if isinstance(tensor, Tensor) else tensor)
    return assemble(spec, loader.finish(), group, backend)


class _Loader:
    """Fills parameters part by part; a linear weight is packed, and its plain copy dropped, with its last part."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, group: TensorParallelGroup, backend: Backend) -> None:
        self._spec, self._group, self._backend = spec, group, backend
        self._dtype = backend.compute_dtype or dtype
        self._waiting = {part.name: (parameter, part) for parameter in parameters(spec) for part in parameter.parts}
        self._expected = frozenset(self._waiting)
        self._filling: dict[str, Filling] = {}
        self._weights = Weights({}, {})

    def add(self, name: str, tensor: StoredTensor) -> None:
        if name not in self._waiting:
            self._refuse_unless_redundant(name)
            return
        parameter, part = self._waiting.pop(name)
        _check_tensor(part, tensor)
        whole = self._filling.get(parameter.name)
        if whole is None:
            whole = self._filling[parameter.name] = self._allocate(parameter)
        self._copy(parameter, part, tensor, whole.values)
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

    def _allocate(self, parameter: Parameter) -> Filling:
        rows = sum(self._slice(part).num_rows for part in parameter.parts)
        shape = (rows, *self._slice(parameter.parts[0]).row_shape)
        # Padding of the vocabulary and another rank's bias stay zero.
        return Filling(shape, self._dtype, self._backend.device)

    def _copy(self, parameter: Parameter, part: Part, tensor: StoredTensor, whole: Tensor) -> None:
        before = parameter.parts[: parameter.parts.index(part)]
        start = sum(self._slice(other).num_rows for other in before)
        mine = self._slice(part)
        for piece in tensor.read(mine.rows, mine.columns):
            target = whole[start : start + len(piece)]
            target.copy_(piece)
            start += len(piece)
            if self._dtype is torch.float16 and not target.isfinite().all():
                raise WeightsError(
                    f"tensor '{part.name}' has values beyond float16's range; use --dtype float32 or bfloat16"
                )

    def _slice(self, part: Part) -> RankSlice:
        return rank_slice(part, self._spec, self._group)

    def _store(self, parameter: Parameter, whole: Filling) -> None:
        if parameter.use is Use.LINEAR:
            self._weights.linear[parameter.name] = pack_weight(whole.values, self._backend, whole.drop_rows)
        elif parameter.use is Use.TABLE:
            self._weights.linear[parameter.name] = pack_table(whole.values, self._backend, whole.drop_rows)
        else:
            self._weights.plain[parameter.name] = whole.values


def _check_tensor(part: Part, tensor: StoredTensor) -> None:
    if tensor.shape != part.shape:
        raise WeightsError(
            f"tensor '{part.name}' has shape {list(tensor.shape)}, config.json asks for {list(part.shape)}"
        )
    if not tensor.dtype.is_floating_point:
        raise WeightsError(f"tensor '{part.name}' holds {tensor.dtype}; use an unquantized checkpoint or a .gguf file")
