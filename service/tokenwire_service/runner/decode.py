"""The step in which every row computes its last token and draws the next: it needs next to nothing from the host, and
is the one worth recording. Shapes: S rows, V' tokens of the vocabulary that
this rank holds.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwire_service.kernels import sample
from tokenwire_service.kernels.advance import DecodeInputs, gather_decode_inputs
from tokenwire_service.layers.batch import AttentionBatch
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.runner.device_slots import DeviceSlots, SlotWrites
from tokenwire_service.runner.forward_batch import DrawTensors
from tokenwire_service.runner.kv_cache import KVCache
from tokenwire_service.runner.sizing import EngineSizes
from tokenwire_service.runner.step_graphs import StepGraphs
from tokenwire_service.runner.transfer import upload_all
from tokenwire_service.runner.vocabulary import Vocabulary


class DecodeStep:
    """`load`, then `forward`, then `draw`, or another way to draw from the logits.

    Recordings read and write the tensors made here. With buckets, rows beyond those of the step are padded: slot -1.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv_cache: KVCache,
        slots: DeviceSlots,
        vocabulary: Vocabulary,
        sizes: EngineSizes,
        graphs: StepGraphs,
    ) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._slots = slots
        self._vocabulary = vocabulary
        self._sizes = sizes
        self._graphs = graphs
        rows, device = max(sizes.max_num_sequences, *graphs.bucket_sizes, 0), decoder.backend.device
        self._row_slots = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self._query_start_loc = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._inputs = _empty_inputs(rows, sizes.max_blocks_per_sequence, device)
        self._hidden: dict[int, Tensor] = {}
        self._logits: Tensor | None = None
        self._choice = sample.Choice(
            torch.zeros(rows, dtype=torch.int64, device=device), torch.zeros(rows, dtype=torch.bool, device=device)
        )
        if graphs.bucket_sizes:
            self._logits = torch.empty((rows, vocabulary.width), dtype=torch.float32, device=device)
        self._loaded = np.empty(0, dtype=np.int64)

    @torch.inference_mode()
    def record(self) -> None:
        """Record every bucket, the largest first. Call while no slot is in use and no step in flight."""
        self._row_slots.fill_(-1)
        self._loaded = np.empty(0, dtype=np.int64)
        for size in reversed(self._graphs.bucket_sizes):
            self._graphs.prepare(("forward", size), partial(self._gather_and_compute, size))
            self._graphs.prepare(("draw", size), partial(self._draw_and_append, size))

    def load(self, row_slots: NDArray[np.int64], writes: SlotWrites) -> None:
        """Bring the slots up to date and name the rows' slots [S]. When neither has changed, nothing travels."""
        if not writes and np.array_equal(row_slots, self._loaded):
            return
        padded = np.full(self._padded(len(row_slots)), -1, dtype=np.int64)
        padded[: len(row_slots)] = row_slots
        rows, cells, values = upload_all([padded, *writes.arrays()], self._row_slots.device)
        self._slots.write(cells, values)
        self._row_slots[: len(rows)].copy_(rows)
        self._loaded = row_slots

    def forward(self) -> Tensor:
        """float32 logits [S, V'], good until the next call."""
        num_rows = len(self._loaded)
        size = self._padded(num_rows)
        if self._logits is not None:
            self._graphs.run(("forward", size), partial(self._gather_and_compute, size))
            return self._logits[:num_rows]
        self._gather(size)
        self._graphs.run(("forward", size), partial(self._compute_hidden, size))
        return self._decoder.logits(self._hidden[size])

    @property
    def draws_on_device(self) -> bool:
        """Whether `draw` is there."""
        return self._logits is not None

    def draw(self) -> sample.Choice:
        """Draw from the logits of `forward` by the slots' columns alone, and append the tokens to the slots. The result
        is good until the next call."""
        num_rows = len(self._loaded)
        size = self._padded(num_rows)
        self._graphs.run(("draw", size), partial(self._draw_and_append, size))
        return sample.Choice(*(part[:num_rows] for part in self._choice))

    def draws(self) -> DrawTensors:
        """What `draw` draws, once `forward` was called."""
        num_rows = len(self._loaded)
        row_slots = self._row_slots[:num_rows]
        return DrawTensors(row_slots, self._inputs.seq_lens[:num_rows], row_slots)

    def _padded(self, num_rows: int) -> int:
        buckets = self._graphs.bucket_sizes
        return buckets[bisect_left(buckets, num_rows)] if buckets else num_rows

    def _gather_and_compute(self, size: int) -> None:
        assert self._logits is not None
        self._gather(size)
        self._compute_hidden(size)
        self._decoder.logits(self._hidden.pop(size), self._logits[:size])

    def _gather(self, size: int) -> None:
        slots = self._slots
        gather_decode_inputs(
            self._row_slots[:size],
            slots.last_token,
            slots.positions,
            slots.seq_lens,
            slots.block_tables,
            self._sizes.block_size,
            _first_rows(self._inputs, size),
            self._decoder.backend,
        )

    def _compute_hidden(self, size: int) -> None:
        inputs = _first_rows(self._inputs, size)
        attention = AttentionBatch(
            query_start_loc=self._query_start_loc[: size + 1],
            seq_lens=inputs.seq_lens,
            block_tables=inputs.block_tables,
            slot_mapping=inputs.slot_mapping,
            max_query_len=1,
            max_seq_len=self._sizes.max_total_tokens,
        )
        self._hidden[size] = self._decoder.forward(inputs.input_ids, inputs.positions, attention, self._kv_cache.layers)

    def _draw_and_append(self, size: int) -> None:
        assert self._logits is not None
        slots, row_slots, backend = self._slots, self._row_slots[:size], self._decoder.backend
        columns = slots.sample_columns(row_slots, self._inputs.seq_lens[:size])
        token_ids, valid = self._choice.token_ids[:size], self._choice.valid[:size]
        self._vocabulary.sample_rows(self._logits[:size], columns, token_ids, valid, edited=False)
        slots.append(token_ids, row_slots, backend)


def _empty_inputs(rows: int, max_blocks: int, device: torch.device) -> DecodeInputs:
    return DecodeInputs(
        input_ids=torch.zeros(rows, dtype=torch.int64, device=device),
        positions=torch.zeros(rows, dtype=torch.int64, device=device),
        seq_lens=torch.zeros(rows, dtype=torch.int32, device=device),
        slot_mapping=torch.full((rows,), -1, dtype=torch.int64, device=device),
        block_tables=torch.zeros((rows, max_blocks), dtype=torch.int32, device=device),
    )


def _first_rows(inputs: DecodeInputs, size: int) -> DecodeInputs:
    return DecodeInputs(
        input_ids=inputs.input_ids[:size],
        positions=inputs.positions[:size],
        seq_lens=inputs.seq_lens[:size],
        slot_mapping=inputs.slot_mapping[:size],
        block_tables=inputs.block_tables[:size],
    )
