"""Tensors that are read in part: a rank touches no more of a checkpoint than it keeps."""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

EVERYTHING = slice(None)
_PIECE_BYTES = 1 << 20
"""Of the file, mapped at once while a tensor is read."""


class StoredTensor(Protocol):
    """A checkpoint's tensor that is not in memory yet."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of what `read` gives."""
        ...

    def numel(self) -> int:
        """Numbers in all of it."""
        ...

    def read(self, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Iterator[Tensor]:
        """A slice of dimension 0, and of dimension 1 where that is not everything, in pieces along dimension 0. A piece
        is good until the next is asked for, and must not be written to."""
        ...


class HeldTensor:
    """One that is in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype

    def numel(self) -> int:
        return self._tensor.numel()

    def read(self, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Iterator[Tensor]:
        part = self._tensor[rows]
        yield part if columns == EVERYTHING else part[:, columns]


def whole(stored: StoredTensor) -> Tensor:
    """All of it, in memory of its own."""
    if not stored.shape:
        return next(stored.read()).clone()
    out = torch.empty(stored.shape, dtype=stored.dtype)
    start = 0
    for piece in stored.read():
        out[start : start + len(piece)] = piece
        start += len(piece)
    return out


class MappedFile:
    """A file's bytes, in memory only while they are looked at."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError for a file that cannot be mapped."""
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            # It is never written to.
            warnings.simplefilter("ignore", UserWarning)
            self._bytes = torch.from_numpy(np.frombuffer(self._map, dtype=np.uint8))

    def __len__(self) -> int:
        return len(self._bytes)

    def pieces(self, start: int, num_rows: int, row_bytes: int, *, step: int = 1, growth: int = 1) -> Iterator[Tensor]:
        """uint8 [n, row_bytes] each of `num_rows` rows from byte `start` on, in multiples of `step` rows but for the
        last. What was looked at of one is dropped when the next is asked for. `growth`: bytes that a reader makes of
        one of them."""
        count = max(_PIECE_BYTES // growth // max(row_bytes, 1) // step, 1) * step
        for row in range(0, num_rows, count):
            first, size = start + row * row_bytes, min(count, num_rows - row)
            yield self._bytes[first : first + size * row_bytes].view(size, row_bytes)
            self._drop()

    def _drop(self) -> None:
        """Let go of every page, those too that the system brought along; they stay in its cache."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


class MappedTensor:
    """Numbers one after the other in a file, as safetensors has them."""

    def __init__(self, file: MappedFile, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """The bytes must lie within the file."""
        self._file = file
        self._start = start
        self.shape = shape
        self.dtype = dtype

    def numel(self) -> int:
        return math.prod(self.shape)

    def read(self, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Iterator[Tensor]:
        if not self.shape:
            yield from (
                self._numbers(piece).view(()) for piece in self._file.pieces(self._start, 1, self.dtype.itemsize)
            )
            return
        row_shape = self.shape[1:]
        row_bytes = math.prod(row_shape) * self.dtype.itemsize
        first, end, _ = rows.indices(self.shape[0])
        for piece in self._file.pieces(self._start + first * row_bytes, max(end - first, 0), row_bytes):
            numbers = self._numbers(piece).view(len(piece), *row_shape)
            yield numbers if columns == EVERYTHING else numbers[:, columns]

    def _numbers(self, piece: Tensor) -> Tensor:
        """What does not begin at a multiple of its size cannot be looked at where it is."""
        aligned = piece if piece.storage_offset() % self.dtype.itemsize == 0 else piece.clone()
        return aligned.view(self.dtype)
