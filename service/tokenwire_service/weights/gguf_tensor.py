"""A GGUF file's tensors, of which only the blocks that are wanted are decoded."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tokenwire_service.quantization.gguf import dequantize, plain_dtype
from tokenwire_service.quantization.gguf_types import BLOCKS
from tokenwire_service.weights.gguf_file import GgufTensor
from tokenwire_service.weights.gguf_names import RowOrder
from tokenwire_service.weights.stored import EVERYTHING, MappedFile


class BlockTensor:
    """A StoredTensor under its Hugging Face name and in that order of rows. Quantized ones come as float32."""

    def __init__(self, file: MappedFile, entry: GgufTensor, name: str, order: RowOrder) -> None:
        """Raises WeightsError for rows that the model's heads do not divide."""
        self._file = file
        self._entry = entry
        self._order = order
        self._unit = order.unit(name, entry.shape[0])
        self.shape = entry.shape
        self.dtype = plain_dtype(entry.type) or torch.float32

    def numel(self) -> int:
        return math.prod(self.shape)

    def read(self, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Iterator[Tensor]:
        if len(self.shape) == 2:
            yield from self._read_matrix(rows, columns)
            return
        for raw in self._file.pieces(self._entry.offset, 1, self._entry.num_bytes):
            values = dequantize(raw.view(-1), self._entry.type, self.shape)
            yield self._order.restore(values, self._unit)[rows]

    def _read_matrix(self, rows: slice, columns: slice) -> Iterator[Tensor]:
        """Columns are cut at whole blocks, then finely; so are rows at units."""
        height, width = self.shape
        first, end, _ = rows.indices(height)
        left, right, _ = columns.indices(width)
        block_length, block_bytes = BLOCKS[self._entry.type]
        low, high = left // block_length, -(-right // block_length)
        row, stop = first - first % self._unit, end + -end % self._unit
        row_bytes = width // block_length * block_bytes
        start, num_rows = self._entry.offset + row * row_bytes, stop - row
        # Short pieces, so that what malloc keeps of them is little.
        growth = 4 * -(-block_length * self.dtype.itemsize // block_bytes)
        for piece in self._file.pieces(start, num_rows, row_bytes, step=self._unit, growth=growth):
            raw = piece[:, low * block_bytes : high * block_bytes].reshape(-1)
            values = dequantize(raw, self._entry.type, (len(piece), (high - low) * block_length))
            restored = self._order.restore(values, self._unit)
            before = low * block_length
            yield restored[max(first - row, 0) : end - row, left - before : right - before]
            row += len(piece)
