"""Carries out plans: one forward pass, one draw per row that reaches its sequence's end. Decides nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwire_service.kernels.gather_rows import gather_rows
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.runner.decode import DecodeStep
from tokenwire_service.runner.device_slots import DeviceSlots, SlotWrites
from tokenwire_service.runner.forward_batch import Draws, DrawTensors, build_forward_batch
from tokenwire_service.runner.kv_cache import KVCache
from tokenwire_service.runner.launched_step import DrawnTokens, LaunchedStep, PromptScores
from tokenwire_service.runner.layered_chunks import LayeredChunks
from tokenwire_service.runner.logprobs import TokenScores
from tokenwire_service.runner.sampler import Sampler
from tokenwire_service.runner.sampling_rows import Need
from tokenwire_service.runner.sizing import EngineSizes
from tokenwire_service.runner.slots import SlotState
from tokenwire_service.runner.small_step import SmallStep, SpeculationLimits
from tokenwire_service.runner.step_graphs import NoGraphs, StepGraphs
from tokenwire_service.runner.step_rows import StepRows
from tokenwire_service.runner.timing import Mark, StepTiming
from tokenwire_service.runner.transfer import Download, upload_all
from tokenwire_service.runner.vocabulary import make_vocabulary
from tokenwire_service.scheduling.output import ScheduledSlot, SchedulerOutput

_SCORING_BYTES = 32 << 20
"""Logits held at once while prompts are scored."""
_Ints = NDArray[np.int64]
_Launched = tuple[DrawnTokens | None, tuple[PromptScores, ...]]


class ModelRunner:
    """Owns the slots; the decoder and the KV cache are given. One thread calls it, with plans in scheduling order.

    A step is launched without looking at what the steps before it brought: their tokens are in the slots on the device.
    The one exception are penalties: the rows that have any need every token before counted on the host, so that
    launching a step with such rows waits, after its forward pass is under way, for the results of those before it.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv_cache: KVCache,
        sizes: EngineSizes,
        graphs: StepGraphs | None = None,
        speculation: SpeculationLimits | None = None,
    ) -> None:
        """`graphs`: how steps are recorded; not at all unless given; with guesses, those within `speculation`."""
        graphs, speculation = graphs or NoGraphs(), speculation or SpeculationLimits(0, 0)
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._device = decoder.backend.device
        self._state = SlotState(sizes, decoder.spec.vocab_size)
        self._slots = DeviceSlots(self._state.layout, self._device)
        self._vocabulary = make_vocabulary(decoder.head, decoder.backend)
        self._sampler = Sampler(self._state.sampling, self._vocabulary)
        self._decode_step = DecodeStep(decoder, kv_cache, self._slots, self._vocabulary, sizes, graphs)
        self._chunks = LayeredChunks(decoder, kv_cache, self._state, self._slots)
        self._small_step = SmallStep(decoder, kv_cache, sizes, graphs, speculation)
        self._launched: list[LaunchedStep] = []
        """Steps whose results were not asked for yet."""
        self._last_end: Mark | None = None
        self.last_timing: StepTiming | None = None
        """Of the step whose result was asked for last."""

    def record(self) -> None:
        """Record what is recorded ahead. Call while no slot is in use and no step in flight."""
        self._decode_step.record()
        self._small_step.record()

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput) -> LaunchedStep:
        """Apply the plan's deltas and set its rows going; drawn tokens stay in their slots.

        A row whose numbers are not finite fails alone; anything else that goes wrong raises, here or when the result is
        asked for.
        """
        begun = time.perf_counter()
        writes = self._state.apply(output)
        self._chunks.forget(output.leaves)
        if not output.scheduled:
            self._write(writes)
            return LaunchedStep(output.step_id, (), None, (), Mark(self._device), self._state.learn_draft)
        layered = [row for row in output.scheduled if row.layers is not None]
        whole = tuple(row for row in output.scheduled if row.layers is None) if layered else output.scheduled
        start = Mark(self._device)
        drawn, prompts = self._compute(whole, writes)
        lost = [row.slot for row in layered if not self._chunks.go_on(row)]
        end = Mark(self._device)
        step = LaunchedStep(output.step_id, whole, drawn, prompts, end, self._state.learn_draft, lost)
        step.when_finished(partial(self._time, start, end, time.perf_counter() - begun))
        self._launched = [*(earlier for earlier in self._launched if not earlier.was_asked), step]
        return step

    def _write(self, writes: SlotWrites) -> None:
        if writes:
            self._slots.write(*upload_all(writes.arrays(), self._device))

    def _compute(self, scheduled: tuple[ScheduledSlot, ...], writes: SlotWrites) -> _Launched:
        """The rows of all layers."""
        if not scheduled:
            self._write(writes)
            return None, ()
        rows = StepRows.of(scheduled)
        self._state.count(rows)
        if rows.only_decodes:
            return self._compute_decodes(rows, writes)
        return self._compute_mixed(scheduled, rows, writes)

    def _compute_decodes(self, rows: StepRows, writes: SlotWrites) -> _Launched:
        step = self._decode_step
        step.load(rows.slots, writes)
        logits = step.forward()
        needs = self._state.sampling.needs_at(rows.slots, rows.ends)
        if step.draws_on_device and not (needs & int(Need.beyond_columns())).any():
            return DrawnTokens(Download(step.draw())), ()
        return self._draw(logits, rows.slots, rows.ends, needs, step.draws()), ()

    def _compute_mixed(self, scheduled: tuple[ScheduledSlot, ...], rows: StepRows, writes: SlotWrites) -> _Launched:
        decoder, draws = self._decoder, Draws.of(rows)
        batch = build_forward_batch(rows, draws, writes, self._state, self._slots)
        prompts: tuple[PromptScores, ...] = ()
        if self._small_step.takes(rows):
            logits = self._small_step.forward(batch)
        else:
            # Scores of a prompt need the hidden state of every token.
            kept = None if rows.scores_prompt else batch.kept
            hidden = decoder.forward(batch.input_ids, batch.positions, batch.attention, self._kv_cache.layers, kept)
            prompts = self._score_prompts(scheduled, rows, hidden) if rows.scores_prompt else ()
            if not len(draws.slots):
                return None, prompts
            logits = decoder.logits(hidden if kept else gather_rows(hidden, batch.kept.tokens, decoder.backend))
        needs = self._state.sampling.needs_at(draws.slots, draws.positions)
        drawn = self._draw(logits, draws.slots, draws.positions, needs, batch.draws)
        owners = tuple(self._state.sampling[slot] for slot in rows.slots[rows.num_drafts > 0].tolist())
        return replace(drawn, owners=owners), prompts

    def _draw(self, logits: Tensor, slots: _Ints, positions: _Ints, needs: _Ints, there: DrawTensors) -> DrawnTokens:
        counting = np.flatnonzero(needs & Need.PENALTIES).tolist()
        if counting:
            self._read_all()
        columns = self._slots.sample_columns(there.slots, there.positions) if self._decoder.backend.triton else None
        drawn = self._sampler.draw(logits, slots, positions, needs, columns)
        self._slots.append(drawn.choice.token_ids, there.appended, self._decoder.backend)
        counts = [(at, self._state.sampling[int(slots[at])].counts) for at in counting]
        return DrawnTokens(
            download=Download(drawn.choice),
            scored=drawn.scored,
            scores=drawn.scores,
            counts=tuple((at, count) for at, count in counts if count is not None),
        )

    def _read_all(self) -> None:
        """Count what every step before this one drew."""
        for step in self._launched:
            if not step.was_asked:
                step.result()

    def _score_prompts(
        self, scheduled: tuple[ScheduledSlot, ...], rows: StepRows, hidden: Tensor
    ) -> tuple[PromptScores, ...]:
        """Log-probabilities of the prompt tokens that follow the computed ones."""
        starts = (np.cumsum(rows.counts) - rows.counts).tolist()
        return tuple(
            self._score_prompt(row, plan, hidden[starts[row] : starts[row] + plan.num_tokens])
            for row, plan in enumerate(scheduled)
            if plan.score_prompt
        )

    def _score_prompt(self, row: int, plan: ScheduledSlot, hidden: Tensor) -> PromptScores:
        state, slot, decoder = self._state, plan.slot, self._decoder
        wanted = state.sampling[slot].prompt_logprobs
        first, end = plan.start + 1, min(plan.start + plan.num_tokens + 1, int(state.num_prompt_tokens[slot]))
        if wanted is None or first >= end:
            return PromptScores(row, 0, ())
        targets = self._slots.token_ids[slot, first:end].long()
        chunk = max(1, _SCORING_BYTES // (4 * self._vocabulary.width))
        pieces = []
        for at in range(0, len(targets), chunk):
            part = targets[at : at + chunk]
            logits = decoder.logits(hidden[at : at + len(part)])
            pieces.append(TokenScores(logits, part, [wanted] * len(part), self._vocabulary))
        return PromptScores(row, first, tuple(pieces))

    def _time(self, start: Mark, end: Mark, launch_s: float, read_s: float) -> None:
        device_s = start.seconds_to(end)
        # A device that is the host works while it is being told to.
        host_s = launch_s + read_s - (device_s if self._device.type == "cpu" else 0.0)
        gap_s = 0.0 if self._last_end is None else self._last_end.seconds_to(start)
        self.last_timing = StepTiming(host_s, device_s, gap_s)
        self._last_end = end
