"""Dense linear layers over weights that are packed once, and rows of such weights, as an embedding wants them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenwire_service.kernels._cpu_library import CpuLibrary, check_rows
from tokenwire_service.kernels.backend import Backend, LinearFormat
from tokenwire_service.kernels.embed_gather import embed_gather
from tokenwire_service.kernels.linear import reference

INT8_GROUP = reference.INT8_GROUP
_LARGEST_HALF = 65504.0
_PACK_BYTES = 1 << 20
"""Of a weight, packed at once."""
DropRows = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A weight [out_features, in_features]; the only copy of it."""

    data: Tensor
    """[N, K] in the plain format, bytes only its kernels can read in the others."""
    out_features: int
    in_features: int
    format: LinearFormat
    backend: Backend

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes


def pack_weight(weight: Tensor, backend: Backend, drop_rows: DropRows = lambda end: None) -> LinearWeight:
    """weight [N, K], contiguous → the form `linear` wants. The plain copy can be dropped afterwards, in the native
    formats row by row meanwhile: `drop_rows` is told of ends of rows that will not be looked at again.

    A weight beyond float16's range is kept in float32 where the format says float16.
    """
    _check_weight(weight)
    out_features, in_features = weight.shape
    form = backend.linear_format
    if form is LinearFormat.ONEDNN:
        data = torch.ops.mkldnn._reorder_linear_weight(weight)
    elif form is LinearFormat.PLAIN:
        data = weight
    else:
        return _pack_native(weight, backend, drop_rows)
    return LinearWeight(data, out_features, in_features, form, backend)


def pack_table(weight: Tensor, backend: Backend, drop_rows: DropRows = lambda end: None) -> LinearWeight:
    """As pack_weight, in a format whose rows can be looked up."""
    _check_weight(weight)
    if backend.linear_format.is_native:
        return _pack_native(weight, backend, drop_rows)
    return LinearWeight(weight, weight.shape[0], weight.shape[1], LinearFormat.PLAIN, backend)


def linear(x: Tensor, weight: LinearWeight, bias: Tensor | None) -> Tensor:
    """x [T, K] → x W^T + bias, [T, N]. Raises ValueError when x does not fit.

    In the native formats each row's result depends on that row alone, bit for bit.
    """
    if x.dim() != 2 or x.shape[1] != weight.in_features:
        raise ValueError(f"x must be [T, {weight.in_features}], got {tuple(x.shape)}")
    if weight.format.is_native:
        return _linear_native(x, weight, bias)
    if weight.format is LinearFormat.PLAIN:
        return reference.linear(x, weight.data, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.data, bias, "none", [], "")
    return result


def rows(ids: Tensor, weight: LinearWeight, first_id: int, vocab_size: int) -> Tensor:
    """ids int64 [T] → [T, K]: the weight's rows `ids - first_id`; zeros outside of them. See embed_gather."""
    if not weight.format.is_native:
        return embed_gather(ids, weight.data, first_id, vocab_size, weight.backend)
    library = _library(weight)
    if weight.out_features == vocab_size:
        check_rows(library, ids, vocab_size)
    out = library.empty(len(ids), weight.in_features)
    library.run(
        f"tw_linear_rows_{weight.format.value}",
        ids.data_ptr(),
        weight.data.data_ptr(),
        out.data_ptr(),
        len(ids),
        first_id,
        weight.out_features,
        weight.in_features,
    )
    return out


def _check_weight(weight: Tensor) -> None:
    if weight.dim() != 2 or not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous [N, K], got {tuple(weight.shape)}")


def _library(weight: LinearWeight) -> CpuLibrary:
    if weight.backend.library is None:
        raise ValueError(f"a weight in the format {weight.format.value} needs the native kernels")
    return weight.backend.library


def _in_pairs(form: LinearFormat, library: CpuLibrary) -> bool:
    """Whether input features are multiplied two by two, x rounded as the weights are."""
    return form is LinearFormat.BFLOAT16 and library.has_bf16_products


def _in_features_held(in_features: int, form: LinearFormat, library: CpuLibrary) -> int:
    """Up to whole pairs."""
    return in_features + in_features % 2 if _in_pairs(form, library) else in_features


def _pack_native(weight: Tensor, backend: Backend, drop_rows: DropRows) -> LinearWeight:
    library, form = backend.library, backend.linear_format
    if library is None or weight.dtype is not torch.float32:
        raise ValueError(f"only float32 weights are packed, by the native kernels; got {weight.dtype}")
    if form is LinearFormat.FLOAT16:
        # No copy of its size, as abs() would make.
        low, high = weight.aminmax()
        if not (float(low) >= -_LARGEST_HALF and float(high) <= _LARGEST_HALF):
            form = LinearFormat.FLOAT32
    out_features, in_features = weight.shape
    panel = library.check("tw_linear_panel")
    num_panels = -(-out_features // panel)
    if form is LinearFormat.INT8:
        size = library.check("tw_linear_int8_bytes", out_features, in_features)
        data = torch.empty(size, dtype=torch.uint8)
    else:
        width = _in_features_held(in_features, form, library)
        data = torch.empty(num_panels * panel * width, dtype=getattr(torch, form.value))
    at_once = max(_PACK_BYTES // (weight[0].nbytes * panel), 1)
    for first in range(0, num_panels, at_once):
        start, end = first * panel, min((first + at_once) * panel, out_features)
        there = data.data_ptr() + data.nbytes // num_panels * first
        library.run(f"tw_linear_pack_{form.value}", weight[start].data_ptr(), there, end - start, in_features)
        drop_rows(end)
    return LinearWeight(data, out_features, in_features, form, backend)


def _linear_native(x: Tensor, weight: LinearWeight, bias: Tensor | None) -> Tensor:
    if x.dtype is not torch.float32 or not x.is_contiguous():
        raise ValueError(f"x must be contiguous float32, got {x.dtype}")
    library, tokens = _library(weight), x.shape[0]
    out = library.empty(tokens, weight.out_features)
    pointers = (x.data_ptr(), weight.data.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr())
    sizes = (tokens, weight.out_features, weight.in_features)
    if weight.format is not LinearFormat.INT8:
        width = _in_features_held(weight.in_features, weight.format, library)
        rounded = library.empty(tokens, width, dtype=torch.bfloat16) if _in_pairs(weight.format, library) else None
        room = 0 if rounded is None else rounded.data_ptr()
        library.run(f"tw_linear_{weight.format.value}", *pointers, room, *sizes)
        return out
    groups = -(-weight.in_features // INT8_GROUP)
    wide = library.check("tw_linear_int8_activation_bytes") == 2
    rounded = library.empty(tokens, groups * INT8_GROUP, dtype=torch.int16 if wide else torch.int8)
    scales, starts = library.empty(tokens, groups), library.empty(tokens, groups, dtype=torch.int32)
    library.run("tw_linear_int8", *pointers, rounded.data_ptr(), scales.data_ptr(), starts.data_ptr(), *sizes)
    return out
