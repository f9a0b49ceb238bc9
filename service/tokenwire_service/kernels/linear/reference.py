"""Linear layers in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear as dense
from torch.nn.functional import pad

INT8_GROUP = 32
"""Input features that share a scale."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, K], weight [N, K], bias [N] → [T, N]."""
    return dense(x, weight, bias)


def linear_int8(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `linear`, with weight and x each rounded to 8 bits: per row, in groups of 32 input features."""
    rounded_weight, weight_scales = _round_groups(weight.float(), torch.float16)
    rounded_x, x_scales = _round_groups(x.float(), torch.float32)
    products = torch.einsum("tgi,ngi->tng", rounded_x, rounded_weight)
    result = (products * x_scales[:, None] * weight_scales[None]).sum(dim=-1)
    return result if bias is None else result + bias


def round_int8(weight: Tensor) -> Tensor:
    """float32 [N, K] → the float32 numbers its 8-bit form stands for."""
    rounded, scales = _round_groups(weight, torch.float16)
    return (rounded * scales[..., None]).flatten(1)[:, : weight.shape[1]]


def _round_groups(x: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[R, K] → whole numbers in [-127, 127] as float32 [R, groups, 32] (zeros beyond K), and scales [R, groups]."""
    groups = pad(x, (0, -x.shape[1] % INT8_GROUP)).view(len(x), -1, INT8_GROUP)
    scales = (groups.abs().amax(dim=-1) / 127.0).to(scale_dtype).float()
    inverse = torch.where(scales > 0, 1.0 / scales, 0.0)
    return (groups * inverse[..., None]).round().clamp(-127, 127), scales
