"""From answers to figures. All times are seconds; a percentile is a value that was seen (nearest rank)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from tokenwire_service.bench_command.runner import Run
from tokenwire_service.bench_command.settings import Slo
from tokenwire_service.bench_command.target import Answer


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a list of times looks like; all zero when it is empty."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Distribution:
        ordered = sorted(values)
        if not ordered:
            return cls()
        p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
        return cls(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least of the ascending values that `share` of them do not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


@dataclass(frozen=True, slots=True)
class Summary:
    """One load's figures."""

    load: str
    load_value: float
    seconds: float
    requests: int
    completed: int
    errors: dict[str, int]
    ttft: Distribution
    """From when a request was due to its first text."""
    itl: Distribution
    """Between consecutive events with text, all requests together."""
    tpot: Distribution
    """Each request's mean time for a token after the first."""
    e2e: Distribution
    lag: Distribution
    """How late the generator sent: what it adds to every latency."""
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    asked_prompt_tokens: float
    """Means over the completed requests; `prompt_tokens` is what the server counted."""
    prompt_tokens: float
    output_tokens: float
    cached_share: float
    """Of prompt tokens, by the server's count."""
    good_requests_per_s: float
    good_share: float
    """Of all requests: completed within the SLO. 1 without an SLO and without errors."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def summarise(run: Run, slo: Slo, group: str | None = None) -> Summary:
    """Figures of a run that ended; of one `group` of its jobs only, when that is given."""
    answers = [answer for answer in run.answers if group is None or answer.job.group == group]
    done = [answer for answer in answers if not answer.error]
    seconds = max(run.seconds, 1e-9)
    prompt_tokens = sum(answer.prompt_tokens for answer in done)
    output_tokens = sum(answer.output_tokens for answer in done)
    good = sum(is_good(answer, slo) for answer in done)
    num = max(len(done), 1)
    return Summary(
        load=run.load.label,
        load_value=run.load.value,
        seconds=seconds,
        requests=len(answers),
        completed=len(done),
        errors=dict(Counter(answer.error for answer in answers if answer.error)),
        ttft=Distribution.of(ttft_of(answer) for answer in done if answer.token_times),
        itl=Distribution.of(gap for answer in done for gap in gaps_of(answer)),
        tpot=Distribution.of(tpot for answer in done if (tpot := tpot_of(answer)) is not None),
        e2e=Distribution.of(answer.ended - answer.due for answer in done),
        lag=Distribution.of(answer.sent - answer.due for answer in answers),
        requests_per_s=len(done) / seconds,
        output_tokens_per_s=output_tokens / seconds,
        prompt_tokens_per_s=prompt_tokens / seconds,
        asked_prompt_tokens=sum(answer.job.prompt_tokens for answer in done) / num,
        prompt_tokens=prompt_tokens / num,
        output_tokens=output_tokens / num,
        cached_share=sum(answer.cached_tokens for answer in done) / max(prompt_tokens, 1),
        good_requests_per_s=good / seconds,
        good_share=good / max(len(answers), 1),
    )


def ttft_of(answer: Answer) -> float:
    """Of an answer with text."""
    return answer.token_times[0] - answer.due


def gaps_of(answer: Answer) -> Iterable[float]:
    """Times between its events with text."""
    times = answer.token_times
    return (later - earlier for earlier, later in pairwise(times))


def tpot_of(answer: Answer) -> float | None:
    """Mean time for a token after the first; None for fewer than two."""
    if len(answer.token_times) < 2 or answer.output_tokens < 2:
        return None
    return (answer.token_times[-1] - answer.token_times[0]) / (answer.output_tokens - 1)


def is_good(answer: Answer, slo: Slo) -> bool:
    """Whether a completed answer kept to the SLO: its first text, and its mean time for a token."""
    first = ttft_of(answer) if answer.token_times else answer.ended - answer.due
    return first <= slo.ttft_s and (tpot_of(answer) or 0.0) <= slo.itl_s
