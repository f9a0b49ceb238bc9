"""Selected rows of a packed batch: the tokens whose logits are wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenwire_service.kernels._cpu_library import check_rows
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.embed_gather import look_up
from tokenwire_service.kernels.gather_rows import reference


def gather_rows(x: Tensor, rows: Tensor, backend: Backend) -> Tensor:
    """x [T, E], rows int64 [R] → [R, E]. Raises ValueError for another layout, IndexError for a row outside [0, T).

    A GPU cannot be asked without waiting for it: there, such a row is zero.
    """
    if x.dim() != 2 or rows.dim() != 1 or x.device != backend.device:
        raise ValueError(
            f"expected x [T, E] on {backend.device} and rows [R], got {tuple(x.shape)}, {tuple(rows.shape)}"
        )
    if backend.triton:
        from tokenwire_service.kernels.gather_rows import _triton

        return _triton.gather_rows(x.contiguous(), rows.contiguous())
    if backend.library is None or x.dtype is not torch.float32:
        return reference.gather_rows(x, rows)
    check_rows(backend.library, rows, len(x))
    return look_up(rows, x, 0, backend.library)
