"""Every GGUF block format against gguf-py's own dequantizer, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from tokenwire_service.quantization.gguf import dequantize
from tokenwire_service.quantization.gguf_types import BLOCKS, GgufType, byte_size

QUANTIZED = [kind for kind in GgufType if BLOCKS[kind][0] > 1]


def random_blocks(kind: GgufType, num_blocks: int, seed: int) -> np.ndarray:
    """Random bytes, with every float16 field finite: NaN scales would compare unequal to themselves."""
    _, block_bytes = BLOCKS[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    halves = {"Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2)}.get(kind.name, (0,))
    for start in halves:
        values = (rng.standard_normal(num_blocks) * 0.01).astype(np.float16)
        blocks[:, start : start + 2] = values.view(np.uint8).reshape(-1, 2)
    return blocks


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
# The last one is more than one chunk.
@pytest.mark.parametrize("shape_blocks", [(1, 1), (3, 5), (67, 131)])
def test_equals_gguf_py(kind: GgufType, shape_blocks: tuple[int, int]) -> None:
    rows, columns = shape_blocks
    length, num_bytes = BLOCKS[kind]
    blocks = random_blocks(kind, rows * columns, seed=rows)
    expected = gguf.dequantize(blocks.reshape(rows, columns * num_bytes), gguf.GGMLQuantizationType(int(kind)))
    got = dequantize(torch.from_numpy(blocks.reshape(-1)), kind, (rows, columns * length))
    assert got.dtype == torch.float32
    assert got.shape == (rows, columns * length)
    assert np.array_equal(got.numpy(), expected)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_block_sizes_equal_ggmls(kind: GgufType) -> None:
    assert BLOCKS[kind] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(kind))]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(GgufType.F32, torch.float32), (GgufType.F16, torch.float16), (GgufType.BF16, torch.bfloat16)],
)
def test_plain_types_keep_their_dtype_and_bits(kind: GgufType, dtype: torch.dtype) -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    raw = values.flatten().view(torch.uint8)
    got = dequantize(raw, kind, (4, 6))
    assert got.dtype == dtype
    assert torch.equal(got, values)


def test_rows_that_are_not_whole_blocks_have_no_size() -> None:
    assert byte_size(GgufType.Q4_K, 2 * 320, 320) is None
    assert byte_size(GgufType.Q4_0, 2 * 320, 320) == 2 * 10 * 18
