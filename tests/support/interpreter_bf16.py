"""Makes Triton's interpreter right about bfloat16 and float8_e4m3fn.

Triton 3.6 keeps bfloat16 as raw bits in uint16, calculates with these integers, truncates where hardware rounds to
nearest even, and rounds to float8 without carrying. With the patch every operation is done in float32 and rounded
once, as on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

SUPPORTED = "3.6."
RAW = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn}
"""Types whose tensors hold raw bits, and what they mean."""


def patch_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises RuntimeError for a Triton whose interpreter may look different."""
    if not triton.__version__.startswith(SUPPORTED):
        raise RuntimeError(f"the patch is for triton {SUPPORTED}x, this is {triton.__version__}")
    builder = interpreter.InterpreterBuilder
    for method in (cast_impl, create_fp_to_fp, binary_op, create_dot):
        monkeypatch.setattr(builder, method.__name__, method)


def values(handle: Any) -> np.ndarray[Any, Any]:
    """What a tensor means: its data, or float32 of raw bits."""
    raw = RAW.get(handle.dtype.scalar)
    if raw is None:
        return handle.data
    bits = torch.from_numpy(np.array(handle.data))
    return bits.view(raw).float().numpy()


def handle_of(data: np.ndarray[Any, Any], dtype: Any) -> Any:
    """data, rounded to nearest even in the type it is to have; float8 saturates."""
    raw = RAW.get(dtype)
    np_dtype = interpreter._get_np_dtype(dtype)
    if raw is None:
        return interpreter.TensorHandle(data.astype(np_dtype), dtype)
    wide = torch.from_numpy(np.array(data, dtype=np.float32))
    wide = wide.clamp(-448.0, 448.0) if raw == torch.float8_e4m3fn else wide
    bits = torch.int16 if raw == torch.bfloat16 else torch.uint8
    return interpreter.TensorHandle(wide.to(raw).view(bits).numpy().view(np_dtype), dtype)


def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
    return handle_of(values(src), dst_type.scalar)


def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
    return handle_of(values(src), dst_type.scalar)


def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
    output, dtype = op(values(lhs), values(rhs)), lhs.dtype.scalar
    if output.dtype == np.bool_:
        return interpreter.TensorHandle(output, tl.int1)
    if dtype in RAW:
        return handle_of(output, dtype)
    if not interpreter._validate_np_data_size(output, dtype):
        output = output.astype(interpreter._get_np_dtype(dtype))
    return interpreter.TensorHandle(output, dtype)


def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    product = np.matmul(values(a), values(b), dtype=d.data.dtype)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)
