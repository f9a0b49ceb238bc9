"""How the Triton kernels are launched: tiles, warps and splits, from sizes that the host knows without asking the GPU.

Chosen for an H200 (132 SMs, 227 KB of shared memory and 65,536 registers each, 4.3 TB/s), so that no variant spills.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

NUM_SMS = 132
MAX_GROUP = 128
MAX_SPLITS = 32
LONG_SPLIT = 4096
"""Keys in a split where programs are plenty: only so that one long sequence does not outlast all others."""
CHUNK_SPLIT = 512
"""Least keys in a split of a chunk, whose many rows make the merge dear."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a launch depends on. T and S count padding: they are the sizes of the tensors."""

    num_tokens: int
    num_seqs: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    max_blocks: int
    """Width of the block table."""
    q_bytes: int = 2
    """Bytes of an element of q."""
    kv_bytes: int = 2
    """Bytes of an element of the blocks."""

    @property
    def group(self) -> int:
        """Query heads of one KV head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """A tile is block_q query tokens times the query heads of one KV head, in block_m rows, against block_n keys."""

    block_m: int
    block_q: int
    block_n: int
    splits: int
    """Programs that share one tile's keys; a power of two."""
    min_split: int
    """Least keys a split takes while there are more."""
    one_loop: bool
    """Mask every tile of keys in one loop, instead of the full ones without a mask in a loop of their own."""
    num_warps: int
    num_stages: int

    def num_tiles(self, sizes: Sizes) -> int:
        """Tiles that T tokens of S sequences need at most, whatever their lengths."""
        if self.block_q == 1:
            return sizes.num_tokens
        return sizes.num_tokens // self.block_q + sizes.num_seqs


def launch_config(sizes: Sizes) -> LaunchConfig:
    """The committed table. Raises ValueError for more than 128 query heads a KV head."""
    if sizes.group > MAX_GROUP:
        raise ValueError(f"{sizes.group} query heads share a KV head, the Triton kernel takes at most {MAX_GROUP}")
    rows_per_seq = sizes.num_tokens / sizes.num_seqs * sizes.group
    if sizes.num_tokens == sizes.num_seqs or rows_per_seq <= 16:
        return _decode(sizes)
    if sizes.q_bytes == 4:
        return _float32(sizes)
    return _prefill(sizes, rows_per_seq)


def _decode(sizes: Sizes) -> LaunchConfig:
    """Decode and verification: bound by memory, so the rows of a tile are few and its loads many."""
    block_m = max(16, _power_of_two(sizes.group))
    # Where every sequence brings one token, a tile's index is its token and no program idles.
    block_q = 1 if sizes.num_tokens == sizes.num_seqs else block_m // sizes.group
    warps = 4 if block_m <= 64 else 8
    if sizes.q_bytes == 4 or sizes.head_dim > 128:
        base = LaunchConfig(block_m, block_q, 32, 1, 32, True, warps, 3)
    else:
        # Two tiles under way of 64 keys x 128 x (K and V) x 2 bytes = 64 KB: three programs an SM.
        base = LaunchConfig(block_m, block_q, 64, 1, 64, True, warps, 3)
    return _split_decode(base, sizes)


def _prefill(sizes: Sizes, rows_per_seq: float) -> LaunchConfig:
    """Prefill and chunks: bound by the tensor cores, which take 64 rows a warp group (wgmma)."""
    least = _power_of_two(sizes.group)
    tall_programs = math.ceil(rows_per_seq / 128) * sizes.num_seqs * sizes.num_kv_heads
    wide = sizes.head_dim > 128
    # 128 rows read each key half as often as 64; they need enough rows to fill the machine, and registers, of which
    # 256 columns leave enough for 32 keys, and for 16 that must be converted.
    fits = not wide or sizes.kv_bytes > 1
    if least > 64 or (fits and rows_per_seq >= 512 and tall_programs >= NUM_SMS):
        block_n, stages = (16 * sizes.kv_bytes, 2) if wide else (64, 3)
        return _split_chunk(_whole(sizes, 128, block_n, 8, stages), sizes, tall_programs)
    programs = math.ceil(rows_per_seq / 64) * sizes.num_seqs * sizes.num_kv_heads
    if wide:
        return _split_chunk(_whole(sizes, 64, 32, 8, 2), sizes, programs)
    # 80 KB and about 200 registers in four warps: two programs an SM, one calculates while the other's loads are due.
    return _split_chunk(_whole(sizes, 64, 64, 4, 2), sizes, programs)


def _float32(sizes: Sizes) -> LaunchConfig:
    """Prefill without tensor cores: small tiles, or the outer products spill. For checks rather than for speed."""
    return _whole(sizes, max(16, _power_of_two(sizes.group)), 16, 8, 2)


def _whole(sizes: Sizes, block_m: int, block_n: int, warps: int, stages: int) -> LaunchConfig:
    return LaunchConfig(block_m, block_m // sizes.group, block_n, 1, CHUNK_SPLIT, False, warps, stages)


def _split_decode(base: LaunchConfig, sizes: Sizes) -> LaunchConfig:
    """Splits for one and a half programs an SM where there are fewer, else for 4,096 keys at a time."""
    programs = base.num_tiles(sizes) * sizes.num_kv_heads
    wanted = math.ceil(NUM_SMS * 1.5 / programs)
    min_split = base.min_split if wanted > 1 else LONG_SPLIT
    parts = max(1, math.ceil(sizes.max_blocks * sizes.block_size / min_split))
    most = parts if wanted == 1 else min(wanted, parts)
    return replace(base, splits=min(_power_of_two(most), MAX_SPLITS), min_split=min_split)


def _split_chunk(base: LaunchConfig, sizes: Sizes, programs: int) -> LaunchConfig:
    """Splits for a program an SM, where a short chunk follows a long context."""
    parts = math.ceil(sizes.max_blocks * sizes.block_size / base.min_split)
    return replace(base, splits=min(_power_of_two(max(1, min(NUM_SMS // programs, parts))), MAX_SPLITS))


def _power_of_two(number: int) -> int:
    """The least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()
