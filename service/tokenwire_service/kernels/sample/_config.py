"""How the sampler's Triton kernels cut a row. Nothing here changes a result: only speed."""

from __future__ import annotations

from dataclasses import dataclass

OCTAVES = 64
"""Weights in [2**-i, 2**-(i-1)) are counted in octave i; the last holds all that is smaller."""


@dataclass(frozen=True, slots=True)
class RowCut:
    """One row's tokens, cut into tiles."""

    vocab_size: int
    tile: int
    """Tokens that one program handles; a power of two."""
    num_warps: int = 4
    block: int = 4096
    """Tokens, from all tiles together, that the program which chooses the row's token reads at once; a power of two."""

    @property
    def num_tiles(self) -> int:
        return -(-self.vocab_size // self.tile)

    @property
    def num_lanes(self) -> int:
        """The number of tiles, up to a power of two."""
        return 1 << (self.num_tiles - 1).bit_length()

    @property
    def columns(self) -> int:
        """Tokens of each tile in a block."""
        return min(self.tile, max(1, self.block // self.num_lanes))


def row_cut(num_rows: int, vocab_size: int) -> RowCut:
    """Large tiles where the rows fill the GPU, small ones where a row must be spread over it."""
    # Two programs for each of an H200's 132 multiprocessors.
    if num_rows * -(-vocab_size // 4096) >= 264:
        return RowCut(vocab_size, tile=4096, num_warps=8)
    return RowCut(vocab_size, tile=1024)


def mass_scale(vocab_size: int) -> float:
    """Weights, at most 1 each, are summed as integers in units of the reciprocal: V of them stay below 2**62."""
    return 2.0 ** (62 - vocab_size.bit_length())
