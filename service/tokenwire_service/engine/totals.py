"""What several engines tell, as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from tokenwire_service.core.events import EngineStats
from tokenwire_service.engine.client import EngineInfo

_COUNTERS = (
    "num_steps",
    "prefix_query_tokens",
    "prefix_hit_tokens",
    "prompt_tokens",
    "generated_tokens",
    "preemptions",
    "draft_tokens",
    "accepted_draft_tokens",
)
_GAUGES = ("num_running", "num_waiting", "waiting_tokens", "num_blocks", "num_free_blocks", "num_cached_blocks")


def counters(stats: EngineStats) -> EngineStats:
    """Of a snapshot, what only grows."""
    return EngineStats(**{name: getattr(stats, name) for name in _COUNTERS})


def total_stats(snapshots: Sequence[EngineStats]) -> EngineStats:
    """Sums; of the step's time the mean over engines that told one."""
    times = [stats.step_time_s for stats in snapshots if stats.step_time_s]
    return EngineStats(
        **{name: sum(getattr(stats, name) for stats in snapshots) for name in (*_COUNTERS, *_GAUGES)},
        block_size=max((stats.block_size for stats in snapshots), default=0),
        step_time_s=sum(times) / len(times) if times else 0.0,
    )


def total_info(infos: Iterable[EngineInfo]) -> EngineInfo:
    """What all take together: sums of what they hold at once, the least of what one sequence or step may have. Ranks
    and parameters are those of one engine."""
    known = list(infos)
    return dataclasses.replace(
        known[0],
        num_blocks=sum(info.num_blocks for info in known),
        max_batch_size=sum(info.max_batch_size for info in known),
        max_total_tokens=min(info.max_total_tokens for info in known),
        max_batch_prefill_tokens=min(info.max_batch_prefill_tokens for info in known),
    )


class SlowestLoad:
    """Reports of several engines that load side by side, as those of the one that is least far."""

    def __init__(self, num_engines: int, report: Callable[[str, float], None]) -> None:
        """`report` takes the phase and the share of it that is done."""
        self._report = report
        self._phases: list[list[str]] = [[] for _ in range(num_engines)]
        self._fractions = [0.0] * num_engines
        self._told: tuple[str, float] | None = None

    def heard(self, engine: int, phase: str, fraction: float) -> None:
        """One engine is that far."""
        phases = self._phases[engine]
        if not phases or phases[-1] != phase:
            phases.append(phase)
        self._fractions[engine] = fraction
        slowest = min(range(len(self._phases)), key=lambda each: (len(self._phases[each]), self._fractions[each]))
        if self._phases[slowest]:
            news = (self._phases[slowest][-1], self._fractions[slowest])
            if news != self._told:
                self._told = news
                self._report(*news)
