"""Carries out plans: one forward pass, one draw per row that reaches its sequence's end. Decides nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenwire_service.core.events import TokenLogprob
from tokenwire_service.kernels.gather_rows import gather_rows
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.runner.forward_batch import ForwardBatch, build_forward_batch
from tokenwire_service.runner.kv_cache import KVCache
from tokenwire_service.runner.logprobs import score_tokens
from tokenwire_service.runner.sampler import Sampled, Sampler
from tokenwire_service.runner.slots import SlotState
from tokenwire_service.scheduling.output import ScheduledSlot, SchedulerOutput, SlotResult, StepResult

_SCORING_BYTES = 32 << 20
"""Logits held at once while prompts are scored."""
_NOT_FINITE = "the model gave no usable number for the next token; change the sampling constraints or the prompt"


class ModelRunner:
    """Owns the slots; the decoder and the KV cache are given. One thread calls it, with plans in scheduling order."""

    def __init__(self, decoder: Decoder, kv_cache: KVCache, state: SlotState, block_size: int) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._state = state
        self._sampler = Sampler(state)
        self._block_size = block_size
        self._device = decoder.backend.device

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput) -> StepResult:
        """Apply the plan's deltas, compute its rows, and keep drawn tokens in their slots.

        A row whose numbers are not finite fails alone; anything else that goes wrong raises.
        """
        self._state.apply(output)
        if not output.scheduled:
            return StepResult(output.step_id, ())
        batch = build_forward_batch(output.scheduled, self._state, self._block_size, self._device)
        hidden = self._decoder.forward(batch.input_ids, batch.positions, batch.attention, self._kv_cache.layers)
        results = self._score_prompts(batch, hidden, output.scheduled)
        for row, slot_result in self._draw(batch, hidden):
            results[row] = _merge(results.get(row), slot_result)
        return StepResult(output.step_id, tuple(results.values()))

    def _draw(self, batch: ForwardBatch, hidden: Tensor) -> list[tuple[int, SlotResult]]:
        if not len(batch.sampled_rows):
            return []
        rows = torch.from_numpy(batch.sampled_tokens).to(self._device)
        slots = batch.slots[batch.sampled_rows]
        sampled = self._sampler.draw(self._decoder.logits(gather_rows(hidden, rows, self._decoder.backend)), slots)
        return list(zip(batch.sampled_rows.tolist(), self._keep(slots.tolist(), sampled), strict=True))

    def _keep(self, slots: list[int], sampled: Sampled) -> list[SlotResult]:
        """Write drawn tokens into their slots, so that the next plan need not bring them."""
        results = []
        for slot, token_id, valid, logprob in zip(
            slots, sampled.token_ids, sampled.valid, sampled.logprobs, strict=True
        ):
            if not valid:
                results.append(SlotResult(slot, failure=_NOT_FINITE))
                continue
            self._state.append_token(slot, token_id)
            results.append(SlotResult(slot, (token_id,), (logprob,) if logprob else ()))
        return results

    def _score_prompts(
        self, batch: ForwardBatch, hidden: Tensor, scheduled: tuple[ScheduledSlot, ...]
    ) -> dict[int, SlotResult]:
        """Log-probabilities of the prompt tokens that follow the computed ones, by row."""
        results = {}
        for row, plan in enumerate(scheduled):
            if plan.score_prompt:
                start = int(batch.query_start_loc[row])
                results[row] = self._score_prompt(plan, hidden[start : start + plan.num_tokens])
        return results

    def _score_prompt(self, plan: ScheduledSlot, hidden: Tensor) -> SlotResult:
        state, slot = self._state, plan.slot
        wanted = state.sampling[slot].prompt_logprobs
        first, end = plan.start + 1, min(plan.start + plan.num_tokens + 1, int(state.num_prompt_tokens[slot]))
        if wanted is None or first >= end:
            return SlotResult(slot)
        tokens = torch.from_numpy(state.token_ids[slot, first:end].astype(np.int64)).to(self._device)
        chunk = max(1, _SCORING_BYTES // (4 * self._decoder.spec.vocab_size))
        scores: list[TokenLogprob] = []
        for at in range(0, len(tokens), chunk):
            targets = tokens[at : at + chunk]
            logits = self._decoder.logits(hidden[at : at + len(targets)])
            for score in score_tokens(logits, targets, [wanted] * len(targets)):
                if score is None:
                    return SlotResult(slot, failure=_NOT_FINITE)
                scores.append(score)
        return SlotResult(slot, prompt_offset=first, prompt_logprobs=tuple(scores))


def _merge(scored: SlotResult | None, drawn: SlotResult) -> SlotResult:
    if scored is None or drawn.failure:
        return drawn
    if scored.failure:
        return scored
    return SlotResult(drawn.slot, drawn.token_ids, drawn.logprobs, scored.prompt_offset, scored.prompt_logprobs)
