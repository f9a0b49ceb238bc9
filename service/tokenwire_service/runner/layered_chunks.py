"""Chunks of prompts that go through a few layers a step, so that no step is long: what is kept of them in between."""

from __future__ import annotations

from collections.abc import Iterable

from tokenwire_service.models.decoder import Decoder
from tokenwire_service.models.passing import PartialPass
from tokenwire_service.runner.device_slots import DeviceSlots, SlotWrites
from tokenwire_service.runner.forward_batch import Draws, build_forward_batch
from tokenwire_service.runner.kv_cache import KVCache
from tokenwire_service.runner.slots import SlotState
from tokenwire_service.runner.step_rows import StepRows
from tokenwire_service.scheduling.output import ScheduledSlot


class LayeredChunks:
    """One for each slot at most: [T, E] twice, for as many steps as it takes."""

    def __init__(self, decoder: Decoder, kv_cache: KVCache, state: SlotState, slots: DeviceSlots) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._state = state
        self._slots = slots
        self._passing: dict[int, PartialPass] = {}

    def forget(self, slots: Iterable[int]) -> None:
        """Those of sequences that left."""
        for slot in slots:
            self._passing.pop(slot, None)

    def go_on(self, row: ScheduledSlot) -> bool:
        """Take a row's chunk through its layers. Both `state` and `slots` have the plan applied. False, and nothing
        happened, when it does not go on from where the step before left it: that step was lost."""
        assert row.layers is not None, "a row of all layers"
        kept = self._passing.pop(row.slot, None)
        passing = kept if row.layers.first else self._begin(row)
        if passing is None or (passing.num_layers, len(passing.residual)) != (row.layers.first, row.num_tokens):
            return False
        self._decoder.go_on(passing, row.layers.end, self._kv_cache.layers)
        if not row.layers.completes:
            self._passing[row.slot] = passing
        return True

    def _begin(self, row: ScheduledSlot) -> PartialPass:
        rows, nothing = StepRows.of((row,)), SlotWrites(self._state.layout)
        self._state.count(rows)
        batch = build_forward_batch(rows, Draws.of(rows), nothing, self._state, self._slots)
        return self._decoder.begin(batch.input_ids, batch.positions, batch.attention)
