"""Ours against the best peer of each precision class, from one run's rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.peers_list import COMPARED, OURS

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table."""

    label: str
    field: str
    concurrency: int
    lower_is_better: bool
    goal: float | None
    """Ratio ours / best peer that is aimed at; None: none is."""
    rival: str = ""
    """The one peer it is compared with; empty: the best."""

    def value(self, rows: Iterable[Row]) -> float | None:
        """Of one contender's rows."""
        return next((row[self.field] for row in rows if row["concurrency"] == self.concurrency), None)

    def best(self, candidates: dict[str, float]) -> tuple[str, float]:
        pick = min if self.lower_is_better else max
        return pick(candidates.items(), key=lambda item: item[1])

    def met(self, ratio: float) -> bool | None:
        if self.goal is None:
            return None
        return ratio <= self.goal if self.lower_is_better else ratio >= self.goal


def measures(rows: list[Row]) -> list[Measure]:
    """For the concurrencies that were run."""
    levels = sorted({row["concurrency"] for row in rows})
    found = [
        Measure(f"tok/s at {num}", "tokens_per_s", num, False, 1.15 if num in (8, 16, 32) else None) for num in levels
    ]
    ttft = next((name for name in ("ttft_1024_s", "ttft_s") if name in rows[0]), "ttft_s")
    return [
        *found,
        Measure("decode tok/s alone", "decode_tokens_per_s", 1, False, 1.0),
        Measure("TTFT s, long prompt", ttft, levels[0], True, 0.9),
        Measure("RSS MB", "rss_mb", levels[0], True, 1.0, rival="openvino"),
    ]


def by_variant(rows: Iterable[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["variant"], []).append(row)
    return grouped


def table(rows: list[Row]) -> str:
    """A block for each class that has rows of ours and of a peer, then the rows of the other classes."""
    lines: list[str] = []
    for precision_class in COMPARED:
        lines += _class_lines([row for row in rows if row["precision_class"] == precision_class], precision_class)
    others = [row for row in rows if row["precision_class"] not in COMPARED]
    if others:
        lines += ["", "other classes", *_plain_lines(others)]
    return "\n".join(lines)


def _class_lines(rows: list[Row], title: str) -> Iterator[str]:
    ours = by_variant(row for row in rows if row["engine"] == OURS)
    peers = by_variant(row for row in rows if row["engine"] != OURS)
    yield f"\nclass {title}: ours, its ratio to the best peer, whether the goal is met"
    if not ours or not peers:
        yield "  no pair to compare"
        yield from _plain_lines(rows)
        return
    yield f"{'':<22}" + "".join(f"{name:>32}" for name in ours) + f"{'best peer':>46}{'goal':>8}"
    for measure in measures(rows):
        yield from _measure_line(measure, ours, peers)
    yield ""
    yield from _plain_lines(rows)


def _measure_line(measure: Measure, ours: dict[str, list[Row]], peers: dict[str, list[Row]]) -> Iterator[str]:
    rivals = {
        name: value
        for name, rows in peers.items()
        if (value := measure.value(rows)) is not None and measure.rival in ("", rows[0]["engine"])
    }
    if not rivals:
        return
    name, best = measure.best(rivals)
    cells = []
    for rows in ours.values():
        value = measure.value(rows)
        cells.append("" if value is None else _cell(measure, value, value / best))
    goal = "" if measure.goal is None else f"{'<=' if measure.lower_is_better else '>='}{measure.goal:g}"
    yield f"{measure.label:<22}" + "".join(f"{cell:>32}" for cell in cells) + f"{f'{best:.2f} {name}':>46}{goal:>8}"


def _cell(measure: Measure, value: float, ratio: float) -> str:
    verdict = {True: "met", False: "missed", None: ""}[measure.met(ratio)]
    return f"{value:.2f} ({ratio:.2f}x) {verdict:<6}"


def _plain_lines(rows: list[Row]) -> Iterator[str]:
    """Every contender's numbers."""
    if not rows:
        return
    columns = measures(rows)
    yield f"  {'':<34}" + "".join(f"{measure.label:>21}" for measure in columns)
    for name, own in by_variant(rows).items():
        values = [measure.value(own) for measure in columns]
        yield f"  {name:<34}" + "".join(f"{'' if value is None else format(value, '.2f'):>21}" for value in values)
