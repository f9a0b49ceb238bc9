"""GGUF blocks to float32, vectorised over blocks.

Layouts are ggml's (`ggml-common.h`); a block is a row of a uint8 matrix [blocks, bytes per block] and becomes a row of
a float32 matrix [blocks, weights per block]. Values equal gguf-py's `dequantize` bit for bit: the order of the
operations is part of the format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from tokenwire_service.quantization.gguf_types import BLOCKS, GgufType

_PLAIN = MappingProxyType({GgufType.F32: torch.float32, GgufType.F16: torch.float16, GgufType.BF16: torch.bfloat16})
# Weights dequantized at once: the intermediate matrices stay in the cache, and torch does not spread so small an
# operation over threads (on busy cores its thousands of barriers took half a minute).
_CHUNK = 30_720


def plain_dtype(kind: GgufType) -> torch.dtype | None:
    """What the numbers of an unquantized type are; None for a quantized one."""
    return _PLAIN.get(kind)


def dequantize(raw: Tensor, kind: GgufType, shape: tuple[int, ...]) -> Tensor:
    """`raw`, the tensor's bytes (1-D uint8), as values of `shape`.

    Plain types keep their own dtype (a view of `raw` where alignment allows); quantized ones become float32.
    """
    if kind in _PLAIN:
        dtype = _PLAIN[kind]
        aligned = raw if raw.storage_offset() % dtype.itemsize == 0 else raw.clone()
        return aligned.view(dtype).view(shape)
    block_length, block_bytes = BLOCKS[kind]
    blocks = raw.view(-1, block_bytes)
    out = torch.empty(blocks.shape[0], block_length, dtype=torch.float32)
    step = _CHUNK // block_length
    for start in range(0, blocks.shape[0], step):
        _DECODERS[kind](blocks[start : start + step], out[start : start + step])
    return out.view(shape)


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of every block, as a float32 column [blocks, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor, out: Tensor) -> None:
    """Low halves of [blocks, n] bytes into out[:, :n], high halves into out[:, n:]."""
    n = packed.shape[1]
    out[:, :n] = packed & 0x0F
    out[:, n:] = packed >> 4


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 2:], out)
    out.sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 4:], out)
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _fifth_bits(blocks: Tensor, start: int) -> Tensor:
    """The 32 high bits at byte `start`, one uint8 of value 0 or 16 per weight: [blocks, 32]."""
    shifts = torch.arange(8, dtype=torch.uint8)
    bits = blocks[:, start : start + 4, None] >> shifts
    return (bits.flatten(1) & 1) << 4


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 6:], out)
    out.add_(_fifth_bits(blocks, 2)).sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 8:], out)
    out.add_(_fifth_bits(blocks, 4)).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(_half(blocks, 0))


def _k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and eight 6-bit minimums of a super-block, from its 12 bytes: float32 [blocks, 8] each."""
    low, high, mixed = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([low & 0x3F, (mixed & 0x0F) | ((low >> 2) & 0x30)], dim=1)
    minimums = torch.cat([high & 0x3F, (mixed >> 4) | ((high >> 2) & 0x30)], dim=1)
    return scales.float(), minimums.float()


def _apply_k_scales(blocks: Tensor, out: Tensor) -> None:
    """out[b, i] = d·scale·q − dmin·minimum, per sub-block of 32."""
    scales, minimums = _k_scales(blocks[:, 4:16])
    rows = out.view(-1, 8, 32)
    rows.mul_((_half(blocks, 0) * scales)[..., None]).sub_((_half(blocks, 2) * minimums)[..., None])


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    packed = blocks[:, 16:].reshape(-1, 4, 32)
    rows = out.view(-1, 4, 2, 32)
    rows[:, :, 0] = packed & 0x0F
    rows[:, :, 1] = packed >> 4
    _apply_k_scales(blocks, out)


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    high, packed = blocks[:, 16:48], blocks[:, 48:].reshape(-1, 4, 32)
    rows = out.view(-1, 4, 2, 32)
    for pair in range(4):
        rows[:, pair, 0] = (packed[:, pair] & 0x0F) | ((high >> (2 * pair)) & 1) << 4
        rows[:, pair, 1] = (packed[:, pair] >> 4) | ((high >> (2 * pair + 1)) & 1) << 4
    _apply_k_scales(blocks, out)


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 32)
    scales = blocks[:, 192:208].view(torch.int8).float() * _half(blocks, 208)
    rows = out.view(-1, 2, 4, 32)
    for quarter in range(4):
        nibble = low[:, :, quarter % 2] & 0x0F if quarter < 2 else low[:, :, quarter % 2] >> 4
        rows[:, :, quarter] = nibble | ((high >> (2 * quarter)) & 3) << 4
    out.sub_(32).view(-1, 16, 16).mul_(scales[..., None])


_DECODERS: Mapping[GgufType, Callable[[Tensor, Tensor], None]] = MappingProxyType(
    {
        GgufType.Q4_0: _q4_0,
        GgufType.Q4_1: _q4_1,
        GgufType.Q5_0: _q5_0,
        GgufType.Q5_1: _q5_1,
        GgufType.Q8_0: _q8_0,
        GgufType.Q4_K: _q4_k,
        GgufType.Q5_K: _q5_k,
        GgufType.Q6_K: _q6_k,
    }
)
