"""What prompts too long for one step may take of a step that decodes: a bound of measured time.

A plain step is one that only decodes, a mixed one has tokens of long prompts besides. From the times of both follows
what a token of a long prompt costs here and now, and so how many of them a step may have. Nothing is assumed of the
machine, the model or the context but that more tokens take longer.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

_FIRST_TOKENS = 8
"""In a step before anything is known of their cost."""
_MAX_STEPS = 512
"""Steps beside others after which a prompt is through that would take one whole step alone: where the bound cannot be
kept, it is not starved for it."""
_REFRESH_STEPS = 64
"""A plain step's time is measured anew after so many."""
_REFRESH_SPACING = 8
"""Steps between two of those made plain for that."""
_NUM_SAMPLES = 5
_NO_STEP_S = 1e-9
"""Less than this is no step's time."""


@dataclass(frozen=True, slots=True)
class StepLoad:
    """Tokens of one step."""

    decode: int
    """Of sequences that generate, guesses included."""
    long_prompts: float
    """Of prompts too long for one step; by their share, those that go through some of the layers."""
    others: int = 0


@dataclass(slots=True)
class _PlainSteps:
    """The latest plain steps of about as many tokens."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_SAMPLES))
    latest_step: int = 0

    @property
    def typical_s(self) -> float:
        """The median, which one that was held up does not move."""
        return sorted(self.seconds)[len(self.seconds) // 2]


class Pace:
    """Owned by the scheduler, which tells it of every step that ended."""

    def __init__(self, max_slowdown: float, max_tokens: int) -> None:
        """`max_slowdown`: a mixed step's time in plain steps, more than 1; 0 bounds nothing. `max_tokens` are those of
        any step."""
        self._max_slowdown = max_slowdown
        self._max_tokens = max_tokens
        self._min_tokens = max(1, max_tokens // _MAX_STEPS)
        self._plain: dict[int, _PlainSteps] = {}
        self._token_s: float | None = None
        """What a token of a long prompt added to the latest mixed steps."""
        self._num_steps = 0
        self._refreshed_step = -_REFRESH_SPACING

    def long_prompt_tokens(self, num_decode_tokens: int, *, beside_short_prompts: bool) -> float:
        """How many the next step may have. None at times, so that there are plain steps to measure."""
        if not self._max_slowdown:
            return float(self._max_tokens)
        size = _size(num_decode_tokens)
        if num_decode_tokens and not beside_short_prompts and self._is_refresh_due(size):
            self._refreshed_step = self._num_steps
            return 0.0
        return self._chunk(size)

    def learn(self, load: StepLoad, seconds: float) -> None:
        """A step of this load came `seconds` after the one before, or after it was planned when it had to wait."""
        if not self._max_slowdown or not load.decode or load.others or seconds < _NO_STEP_S:
            return
        self._num_steps += 1
        size = _size(load.decode)
        if load.long_prompts:
            self._learn_mixed(size, load.long_prompts, seconds)
        else:
            self._learn_plain(size, seconds)

    def _learn_plain(self, size: int, seconds: float) -> None:
        steps = self._plain.setdefault(size, _PlainSteps())
        if self._num_steps - steps.latest_step > 2 * _REFRESH_STEPS:
            steps.seconds.clear()
        steps.seconds.append(seconds)
        steps.latest_step = self._num_steps

    def _learn_mixed(self, size: int, num_tokens: float, seconds: float) -> None:
        plain_s = self._plain_s(size)
        if plain_s is None:
            return
        allowed_s = self._allowed_s(plain_s)
        extra_s = max(seconds - plain_s, 0.0)
        if extra_s <= allowed_s and 2 * num_tokens < self._chunk(size):
            # A prompt's end: it says nothing of what more tokens would take.
            return
        known_s = self._token_s or allowed_s / _FIRST_TOKENS
        token_s = extra_s / num_tokens
        # Down at once, at most by half; up halfway, at most to twice as many.
        token_s = min(token_s, 2 * known_s) if token_s > known_s else max(math.sqrt(token_s * known_s), known_s / 2)
        self._token_s = max(token_s, allowed_s / self._max_tokens)

    def _chunk(self, size: int) -> float:
        plain_s = self._plain_s(size)
        if plain_s is None or self._token_s is None:
            return float(max(_FIRST_TOKENS, self._min_tokens))
        num_tokens = min(self._allowed_s(plain_s) / self._token_s, self._max_tokens)
        return max(num_tokens, float(self._min_tokens))

    def _allowed_s(self, plain_s: float) -> float:
        return (self._max_slowdown - 1) * plain_s

    def _plain_s(self, size: int) -> float | None:
        """Rather too little where it was not measured: a larger step takes no less than a smaller one, and a smaller
        one its share of a larger at least."""
        if (steps := self._plain.get(size)) is not None:
            return steps.typical_s
        if not self._plain:
            return None
        nearest = min(self._plain, key=lambda other: max(other / size, size / other))
        return self._plain[nearest].typical_s * min(1.0, size / nearest)

    def _is_refresh_due(self, size: int) -> bool:
        if self._num_steps - self._refreshed_step < _REFRESH_SPACING:
            return False
        steps = self._plain.get(size)
        return steps is None or self._num_steps - steps.latest_step >= _REFRESH_STEPS


def _size(num_tokens: int) -> int:
    """Rounded up to one of two sizes for each power of two, so that steps of one size take about as long."""
    width = 1 << max(num_tokens.bit_length() - 2, 0)
    return max(-(-num_tokens // width) * width, 1)
