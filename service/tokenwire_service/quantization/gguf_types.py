"""The GGUF tensor types that can be read, and their block sizes. Imports no torch."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class GgufType(enum.IntEnum):
    """ggml type ids, as `ggml.h` numbers them."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30


BLOCKS: Mapping[GgufType, tuple[int, int]] = MappingProxyType(
    {
        GgufType.F32: (1, 4),
        GgufType.F16: (1, 2),
        GgufType.BF16: (1, 2),
        GgufType.Q4_0: (32, 18),
        GgufType.Q4_1: (32, 20),
        GgufType.Q5_0: (32, 22),
        GgufType.Q5_1: (32, 24),
        GgufType.Q8_0: (32, 34),
        GgufType.Q4_K: (256, 144),
        GgufType.Q5_K: (256, 176),
        GgufType.Q6_K: (256, 210),
    }
)
"""Per type: weights in a block, bytes of a block."""


def byte_size(kind: GgufType, num_elements: int, row_length: int) -> int | None:
    """Bytes of a tensor; None when its rows are not whole blocks."""
    block_length, block_bytes = BLOCKS[kind]
    if row_length % block_length:
        return None
    return num_elements // block_length * block_bytes
