"""Figures as text: a table for one load, or a line for each of several, and what the distribution looks like."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tokenwire_service.bench_command.runner import Run
from tokenwire_service.bench_command.settings import Settings, Slo
from tokenwire_service.bench_command.summary import Distribution, Summary, gaps_of, ttft_of

BARS = "▁▂▃▄▅▆▇█"
NUM_BINS = 32
# A generator later than this has too little machine to measure with.
LATE_S = 0.01


def seconds_text(value: float) -> str:
    """Three digits and a unit."""
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.0f} ms" if value >= 0.0999 else f"{value * 1000:.1f} ms"


def bars(values: Sequence[float]) -> str:
    """A bar for each value, the largest full; what is zero stays blank."""
    most = max(values, default=0.0)
    if most <= 0:
        return " " * len(values)
    return "".join(BARS[min(int(value / most * len(BARS)), len(BARS) - 1)] if value > 0 else " " for value in values)


def bins(values: Sequence[float], num: int = NUM_BINS) -> tuple[list[int], float, float]:
    """Counts in bins of equal ratio from least to largest, and those two."""
    low, high = max(min(values), 1e-6), max(values)
    high = max(high, low * 1.001)
    scale = num / math.log(high / low)
    counts = [0] * num
    for value in values:
        counts[min(max(int(math.log(max(value, low) / low) * scale), 0), num - 1)] += 1
    return counts, low, high


def report(settings: Settings, runs: Sequence[Run], summaries: Sequence[Summary]) -> str:
    """Everything there is to say on a terminal."""
    lines: list[str] = []
    for run, summary in zip(runs, summaries, strict=True):
        lines += ["", *_one(summary, settings.slo), *_histograms(run)]
        lines += _problems(run, summary)
    if len(summaries) > 1:
        lines += ["", *_sweep(summaries, settings.slo)]
    return "\n".join(lines)


def _one(summary: Summary, slo: Slo) -> Iterator[str]:
    errors = sum(summary.errors.values())
    told = f"{summary.requests} requests in {seconds_text(summary.seconds)}, {errors or 'no'} errors"
    yield f"{summary.load} · {told}"
    yield f"{'':18}{'p50':>10}{'p90':>10}{'p99':>10}{'mean':>10}{'max':>10}"
    for name, found in (
        ("first token", summary.ttft),
        ("between events", summary.itl),
        ("per token", summary.tpot),
        ("whole request", summary.e2e),
    ):
        yield f"{name:18}{_row(found)}"
    yield (
        f"{'throughput':18}{summary.output_tokens_per_s:.1f} tokens/s out, {summary.prompt_tokens_per_s:.1f} in, "
        f"{summary.requests_per_s:.2f} requests/s"
    )
    yield (
        f"{'mean lengths':18}prompt {summary.prompt_tokens:.1f} tokens ({summary.asked_prompt_tokens:.1f} asked for, "
        f"{summary.cached_share:.0%} from the cache), answer {summary.output_tokens:.1f}"
    )
    if slo.given:
        yield (
            f"{'goodput':18}{summary.good_requests_per_s:.2f} requests/s, {summary.good_share:.1%} of all, "
            f"within {_slo_text(slo)}"
        )


def _row(found: Distribution) -> str:
    if not found.count:
        return f"{'-':>10}" * 5
    return "".join(f"{seconds_text(x):>10}" for x in (found.p50, found.p90, found.p99, found.mean, found.max))


def _slo_text(slo: Slo) -> str:
    parts = [f"{seconds_text(slo.ttft_s)} to the first token"] if math.isfinite(slo.ttft_s) else []
    parts += [f"{seconds_text(slo.itl_s)} a token"] if math.isfinite(slo.itl_s) else []
    return " and ".join(parts)


def _histograms(run: Run) -> Iterator[str]:
    done = [answer for answer in run.answers if not answer.error]
    for name, values in (
        ("first token", [ttft_of(answer) for answer in done if answer.token_times]),
        ("between events", [gap for answer in done for gap in gaps_of(answer)]),
    ):
        if values:
            counts, low, high = bins(values)
            yield f"{name:18}{seconds_text(low):>8} {bars(counts)} {seconds_text(high)}"


def _problems(run: Run, summary: Summary) -> Iterator[str]:
    for error, num in sorted(summary.errors.items(), key=lambda item: -item[1]):
        message = next(answer.message for answer in run.answers if answer.error == error)
        yield f"{error:18}{num} times, first: {message}"
    if summary.lag.p99 > LATE_S:
        yield f"{'late':18}the generator sent up to {seconds_text(summary.lag.max)} late: give it more of a machine"


def _sweep(summaries: Sequence[Summary], slo: Slo) -> Iterator[str]:
    good = f"{'goodput':>11}" if slo.given else ""
    yield (
        f"{'load':18}{'tokens/s':>10}{'req/s':>9}{'TTFT p50':>11}{'p99':>10}{'ITL p50':>10}{'p99':>10}{'e2e p50':>10}"
        f"{'errors':>8}{good}"
    )
    for one in summaries:
        good = f"{one.good_requests_per_s:>9.2f}/s" if slo.given else ""
        yield (
            f"{one.load:18}{one.output_tokens_per_s:>10.1f}{one.requests_per_s:>9.2f}{seconds_text(one.ttft.p50):>11}"
            f"{seconds_text(one.ttft.p99):>10}{seconds_text(one.itl.p50):>10}{seconds_text(one.itl.p99):>10}"
            f"{seconds_text(one.e2e.p50):>10}{sum(one.errors.values()):>8}{good}"
        )
