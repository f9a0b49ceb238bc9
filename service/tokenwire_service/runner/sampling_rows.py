"""Sampling parameters of each slot, as columns the sampler gathers from, and what a slot's penalties have counted."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenwire_service.core.params import LogprobsParams, SamplingParams
from tokenwire_service.runner.device_slots import SlotWrites
from tokenwire_service.runner.token_counts import TokenCounts
from tokenwire_service.scheduling.output import SlotJoin


class Need(enum.IntFlag):
    """What a row asks of the sampler beyond one argmax."""

    DRAW = 1
    TOP_K = 2
    TOP_P = 4
    MIN_P = 8
    TYPICAL_P = 16
    PENALTIES = 32
    """The only one that depends on which tokens were drawn before."""
    BIAS = 64
    ALLOWED = 128
    MIN_TOKENS = 256
    """Off once enough tokens were generated."""
    LOGPROBS = 512

    @classmethod
    def edits(cls) -> Need:
        """Those that change logits before temperature."""
        return cls.PENALTIES | cls.BIAS | cls.ALLOWED | cls.MIN_TOKENS

    @classmethod
    def beyond_columns(cls) -> Need:
        """Those that `sample_rows` does not know."""
        return cls.edits() | cls.TYPICAL_P | cls.LOGPROBS


@dataclass(eq=False, slots=True)
class SlotSampling:
    """The parts of one slot's parameters that are no columns. One object for each time a sequence enters a slot."""

    params: SamplingParams
    logprobs: LogprobsParams | None
    prompt_logprobs: LogprobsParams | None
    counts: TokenCounts | None
    bias_token_ids: NDArray[np.int64]
    bias_values: NDArray[np.float32]
    allowed_token_ids: NDArray[np.int64]
    end_token_ids: NDArray[np.int64]


class SamplingRows:
    """Columns are indexed by slot."""

    def __init__(self, slots: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.needs = np.zeros(slots, dtype=np.int64)
        """Need flags; `needs_at` knows which of them are on at a position."""
        self.masked_until = np.zeros(slots, dtype=np.int64)
        """Position from which on end tokens may be drawn."""
        self.temperature = np.ones(slots, dtype=np.float32)
        self.top_k = np.zeros(slots, dtype=np.int64)
        self.top_p = np.ones(slots, dtype=np.float32)
        self.min_p = np.zeros(slots, dtype=np.float32)
        self.typical_p = np.ones(slots, dtype=np.float32)
        self.seed = np.zeros(slots, dtype=np.int64)
        self.candidate = np.zeros(slots, dtype=np.int64)
        self.repetition = np.ones(slots, dtype=np.float32)
        self.presence = np.zeros(slots, dtype=np.float32)
        self.frequency = np.zeros(slots, dtype=np.float32)
        self.context_frequency = np.zeros(slots, dtype=np.float32)
        self._details: list[SlotSampling | None] = [None] * slots

    def __getitem__(self, slot: int) -> SlotSampling:
        details = self._details[slot]
        if details is None:
            raise ValueError(f"slot {slot} is empty")
        return details

    def holds(self, slot: int, details: SlotSampling) -> bool:
        """Whether these are still the slot's."""
        return self._details[slot] is details

    def needs_at(self, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Need flags of tokens to be drawn, slots and positions [R]."""
        masked = positions < self.masked_until[slots]
        return np.where(masked, self.needs[slots], self.needs[slots] & ~int(Need.MIN_TOKENS))

    def set(self, join: SlotJoin, prompt: NDArray[np.int32], generated: NDArray[np.int32]) -> None:
        """Take over the parameters of a sequence that enters its slot."""
        slot, params = join.slot, join.sampling
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.typical_p[slot] = params.typical_p
        self.seed[slot] = _as_int64(params.seed)
        self.candidate[slot] = join.candidate_index
        self.repetition[slot] = params.repetition_penalty
        self.presence[slot] = params.presence_penalty
        self.frequency[slot] = params.frequency_penalty
        self.context_frequency[slot] = params.context_frequency_penalty
        # A model may name end tokens it has no row for; there is nothing to mask then.
        end_token_ids = [token_id for token_id in join.end_token_ids if token_id < self._vocab_size]
        masks = bool(end_token_ids) and join.min_tokens > len(generated)
        self.masked_until[slot] = join.num_prompt_tokens + join.min_tokens if masks else 0
        self.needs[slot] = _needs(params, masks=masks, logprobs=join.logprobs is not None)
        self._details[slot] = SlotSampling(
            params=params,
            logprobs=join.logprobs,
            prompt_logprobs=join.prompt_logprobs,
            counts=_counts(params, prompt, generated),
            bias_token_ids=np.array([token_id for token_id, _ in params.logit_bias], dtype=np.int64),
            bias_values=np.array([value for _, value in params.logit_bias], dtype=np.float32),
            allowed_token_ids=np.array(params.allowed_token_ids, dtype=np.int64),
            end_token_ids=np.array(end_token_ids, dtype=np.int64),
        )

    def clear(self, slot: int) -> None:
        self._details[slot] = None
        self.needs[slot] = 0

    def write(self, slot: int, writes: SlotWrites) -> None:
        """Tell the device the slot's columns."""
        writes.set_sampling(
            slot,
            temperature=float(self.temperature[slot]),
            top_k=min(int(self.top_k[slot]), self._vocab_size),
            top_p=float(self.top_p[slot]),
            min_p=float(self.min_p[slot]),
            candidate=int(self.candidate[slot]),
            seed=int(self.seed[slot]),
        )


def _needs(params: SamplingParams, *, masks: bool, logprobs: bool) -> int:
    draws = not params.greedy
    wanted = {
        Need.DRAW: draws,
        Need.TOP_K: draws and params.top_k > 0,
        Need.TOP_P: draws and params.top_p < 1.0,
        Need.MIN_P: draws and params.min_p > 0.0,
        Need.TYPICAL_P: draws and params.typical_p < 1.0,
        Need.PENALTIES: _counts_generated(params) or _counts_everything(params),
        Need.BIAS: bool(params.logit_bias),
        Need.ALLOWED: bool(params.allowed_token_ids),
        Need.MIN_TOKENS: masks,
        Need.LOGPROBS: logprobs,
    }
    return sum(int(need) for need, is_wanted in wanted.items() if is_wanted)


def _counts(params: SamplingParams, prompt: NDArray[np.int32], generated: NDArray[np.int32]) -> TokenCounts | None:
    everything = _counts_everything(params)
    if not everything and not _counts_generated(params):
        return None
    return TokenCounts(prompt, generated, count_prompt=everything)


def _counts_generated(params: SamplingParams) -> bool:
    return params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _counts_everything(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.context_frequency_penalty != 0.0


def _as_int64(value: int) -> int:
    """The low 64 bits, as a signed number."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)
