"""Dense linear layers over weights that are packed once.

On the CPU in float32 the weights are reordered for oneDNN, which beat F.linear at every number of rows measured
(1 to 256; 1.1 to 5 times); a packed weight is the only copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.linear import reference


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A weight [out_features, in_features], in the plain layout or (`packed`) in one only oneDNN can read."""

    data: Tensor
    out_features: int
    in_features: int
    packed: bool


def pack_weight(weight: Tensor, backend: Backend) -> LinearWeight:
    """weight [N, K], contiguous → the form `linear` wants. The plain copy can be dropped afterwards."""
    if weight.dim() != 2 or not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous [N, K], got {tuple(weight.shape)}")
    out_features, in_features = weight.shape
    if not backend.packed_linear:
        return LinearWeight(weight, out_features, in_features, packed=False)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return LinearWeight(packed, out_features, in_features, packed=True)


def linear(x: Tensor, weight: LinearWeight, bias: Tensor | None) -> Tensor:
    """x [T, K] → x W^T + bias, [T, N]. Raises ValueError when x does not fit."""
    if x.dim() != 2 or x.shape[1] != weight.in_features:
        raise ValueError(f"x must be [T, {weight.in_features}], got {tuple(x.shape)}")
    if not weight.packed:
        return reference.linear(x, weight.data, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.data, bias, "none", [], "")
    return result
