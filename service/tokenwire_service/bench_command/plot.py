"""What a benchmark found, drawn: distributions and throughput over time of one load, or figures against the load."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenwire_service.bench_command.report import bins, seconds_text
from tokenwire_service.bench_command.runner import Run
from tokenwire_service.bench_command.summary import Summary, gaps_of, ttft_of
from tokenwire_service.bench_command.svg import Chart, Line, page

NUM_SLICES = 60


def plot(title: str, subtitle: str, runs: Sequence[Run], summaries: Sequence[Summary]) -> str:
    """An SVG."""
    charts = _of_one(runs[0]) if len(runs) == 1 else _of_sweep(runs, summaries)
    return page(title, subtitle, charts)


def _of_one(run: Run) -> list[Chart]:
    done = [answer for answer in run.answers if not answer.error]
    return [
        _histogram("Time to the first token", [ttft_of(answer) for answer in done if answer.token_times], "requests"),
        _histogram("Time between events", [gap for answer in done for gap in gaps_of(answer)], "events"),
        _histogram("Whole requests", [answer.ended - answer.due for answer in done], "requests"),
        _over_time(run),
    ]


def _histogram(title: str, values: Sequence[float], unit: str) -> Chart:
    points: list[tuple[float, float]] = []
    if values:
        counts, low, high = bins(values, 40)
        ratio = (high / low) ** (1 / len(counts))
        points = [(low * ratio**number, float(count)) for number, count in enumerate(counts)]
        points.append((high, 0.0))
    return Chart(f"{title} ({unit})", "", (Line("", points, steps=True),), seconds_text, _number, log_x=True)


def _over_time(run: Run) -> Chart:
    slice_s = max(run.seconds / NUM_SLICES, 1e-3)
    counts = [0] * (NUM_SLICES + 1)
    for answer in run.answers:
        for time in answer.token_times:
            counts[min(int((time - run.began) / slice_s), NUM_SLICES)] += 1
    points = [(number * slice_s, count / slice_s) for number, count in enumerate(counts)]
    return Chart("Events with text per second", "time", (Line("", points, steps=True),), _clock, _number)


def _of_sweep(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[Chart]:
    label = "requests per second" if runs[0].load.rate else "requests at once"

    def chart(title: str, text: Callable[[float], str], *lines: tuple[str, Callable[[Summary], float]]) -> Chart:
        drawn = tuple(
            Line(name, [(one.load_value, value(one)) for one in sorted(summaries, key=lambda s: s.load_value)])
            for name, value in lines
        )
        return Chart(title, label, drawn, _number, text)

    return [
        chart("Tokens per second", _number, ("generated", lambda s: s.output_tokens_per_s)),
        chart("Requests per second", _number, ("answered", _answered), ("good", lambda s: s.good_requests_per_s)),
        chart("Time to the first token", seconds_text, ("p50", lambda s: s.ttft.p50), ("p99", lambda s: s.ttft.p99)),
        chart("Time between events", seconds_text, ("p50", lambda s: s.itl.p50), ("p99", lambda s: s.itl.p99)),
    ]


def _answered(summary: Summary) -> float:
    return summary.requests_per_s


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _clock(value: float) -> str:
    return f"{value:g} s"
