"""What the device knows of each slot, in one allocation, so that one write brings all of it up to date.

Shapes: N slots, L tokens of the longest sequence and one more, M blocks of the longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwire_service.kernels.advance import advance
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.sample import SampleColumns
from tokenwire_service.runner.sizing import EngineSizes

_ALIGNMENT = 64
"""Cells each part starts at a multiple of, as aligned as fresh memory: kernels read 16 bytes at once."""
_INT32_LIMIT = 1 << 31


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """Where each part lies, in cells of 4 bytes."""

    num_slots: int
    max_tokens: int
    """L: a sequence draws one token that it never computes."""
    max_blocks: int
    last_token: int
    positions: int
    seq_lens: int
    temperature: int
    top_k: int
    top_p: int
    min_p: int
    candidate: int
    seed: int
    """Two cells a slot, the low one first."""
    block_tables: int
    token_ids: int
    size: int

    @classmethod
    def of(cls, sizes: EngineSizes) -> SlotLayout:
        """Raises ValueError for more cells than int32 can number."""
        slots, max_tokens, max_blocks = (
            sizes.max_num_sequences,
            sizes.max_total_tokens + 1,
            sizes.max_blocks_per_sequence,
        )
        lengths = [slots] * 8 + [2 * slots, slots * max_blocks, slots * max_tokens]
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + -(-length // _ALIGNMENT) * _ALIGNMENT)
        if starts[-1] >= _INT32_LIMIT:
            raise ValueError(f"{slots} slots of {sizes.max_total_tokens} tokens are more than int32 can number")
        return cls(slots, max_tokens, max_blocks, *starts)


class DeviceSlots:
    """State that steps read and `advance` changes (see kernels/advance). Integers are int32, floats their bits."""

    def __init__(self, layout: SlotLayout, device: torch.device) -> None:
        self._memory = torch.zeros(layout.size, dtype=torch.int32, device=device)
        slots = layout.num_slots
        self.last_token = self._part(layout.last_token, slots)
        """int32 [N], and so the next two."""
        self.positions = self._part(layout.positions, slots)
        """Of the last token."""
        self.seq_lens = self._part(layout.seq_lens, slots)
        """Tokens up to and including the last."""
        self.block_tables = self._part(layout.block_tables, slots * layout.max_blocks).view(slots, -1)
        """int32 [N, M]."""
        self.token_ids = self._part(layout.token_ids, slots * layout.max_tokens).view(slots, -1)
        """int32 [N, L]."""
        self._temperature = self._part(layout.temperature, slots).view(torch.float32)
        self._top_k = self._part(layout.top_k, slots)
        self._top_p = self._part(layout.top_p, slots).view(torch.float32)
        self._min_p = self._part(layout.min_p, slots).view(torch.float32)
        self._candidate = self._part(layout.candidate, slots)
        self._seed = self._part(layout.seed, 2 * slots).view(torch.int64)

    def write(self, cells: Tensor, values: Tensor) -> None:
        """int32 [P] cells, each once, and int32 [P] values, both on the device."""
        if len(cells):
            self._memory.index_copy_(0, cells.long(), values)

    def append(self, token_ids: Tensor, slots: Tensor, backend: Backend) -> None:
        """int64 [S] tokens become the last of slots int32 [S]; -1 drops one."""
        advance(token_ids, slots, self.last_token, self.positions, self.seq_lens, self.token_ids, backend)

    def sample_columns(self, slots: Tensor, position: Tensor) -> SampleColumns:
        """Parameters of the slots int32 [S], those of a padded row (-1) being anybody's; position int [S]."""
        rows = slots.clamp(min=0)
        return SampleColumns(
            temperature=self._temperature.index_select(0, rows),
            seed=self._seed.index_select(0, rows),
            candidate=self._candidate.index_select(0, rows),
            position=position,
            top_k=self._top_k.index_select(0, rows),
            top_p=self._top_p.index_select(0, rows),
            min_p=self._min_p.index_select(0, rows),
        )

    def _part(self, start: int, length: int) -> Tensor:
        return self._memory[start : start + length]


class SlotWrites:
    """Changes to DeviceSlots that gather on the host. A cell may be written once in each."""

    def __init__(self, layout: SlotLayout) -> None:
        self._layout = layout
        self._cells: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.int32]] = []

    def __bool__(self) -> bool:
        return bool(self._cells)

    def set_tokens(self, slot: int, position: int, token_ids: NDArray[np.int32]) -> None:
        """Tokens from `position` on, the last of them the sequence's last. At least one."""
        self.set_guesses(slot, position, token_ids)
        end = position + len(token_ids)
        layout = self._layout
        self._put(
            [layout.last_token + slot, layout.positions + slot, layout.seq_lens + slot],
            [int(token_ids[-1]), end - 1, end],
        )

    def set_guesses(self, slot: int, position: int, token_ids: NDArray[np.int32]) -> None:
        """Tokens from `position` on that may turn out not to be the sequence's."""
        self._fill(self._layout.token_ids + slot * self._layout.max_tokens + position, token_ids)

    def append_blocks(self, slot: int, first: int, block_ids: Sequence[int]) -> None:
        """Entries of the block table from `first` on."""
        start = self._layout.block_tables + slot * self._layout.max_blocks + first
        self._fill(start, np.array(block_ids, dtype=np.int32))

    def set_sampling(
        self, slot: int, *, temperature: float, top_k: int, top_p: float, min_p: float, candidate: int, seed: int
    ) -> None:
        """A slot's columns. `seed` is a signed 64-bit number."""
        layout = self._layout
        floats = np.array([temperature, top_p, min_p], dtype=np.float32).view(np.int32).tolist()
        low, high = np.array([seed], dtype=np.int64).view(np.int32).tolist()
        cells = [layout.temperature, layout.top_p, layout.min_p, layout.top_k, layout.candidate]
        self._put(
            [*(cell + slot for cell in cells), layout.seed + 2 * slot, layout.seed + 2 * slot + 1],
            [*floats, top_k, candidate, low, high],
        )

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Cells [P] and values [P]."""
        if not self._cells:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
        return np.concatenate(self._cells), np.concatenate(self._values)

    def _fill(self, start: int, values: NDArray[np.int32]) -> None:
        self._cells.append(np.arange(start, start + len(values), dtype=np.int64))
        self._values.append(values)

    def _put(self, cells: Sequence[int], values: Sequence[int]) -> None:
        self._cells.append(np.array(cells, dtype=np.int64))
        self._values.append(np.array(values, dtype=np.int32))
