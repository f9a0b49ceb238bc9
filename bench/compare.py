"""Two result files of one kind, row by row: `python -m bench.compare BEFORE.json AFTER.json`.

A ratio is AFTER / BEFORE. Rows that kept their single runs bring their own noise: the band is what the slowest run of
either side is off its quickest; a change within the band, or within --noise where no runs were kept, says nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HIGHER = ("tokens_per_s", "decode_tokens_per_s", "offline_tokens_per_s", "gb_per_s", "goodput_per_s")
LOWER = ("ttft_1024_s", "ttft_s", "rss_mb", "step_ms", "gap_ms", "us")
_RUNS = {"tokens_per_s": "runs_s", "ttft_1024_s": "ttft_runs_s", "ttft_s": "ttft_runs_s"}
_KEYS = (
    "engine",
    "variant",
    "precision_class",
    "kind",
    "op",
    "shape",
    "implementation",
    "concurrency",
    "batch",
    "length",
    "ttft_prompt_tokens",
)
"""What tells one row from another, where a row has it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of one row in both files."""

    row: str
    figure: str
    before: float
    after: float
    band: float
    """Relative; a ratio within 1 ± band is noise."""

    @property
    def ratio(self) -> float:
        return self.after / self.before

    @property
    def verdict(self) -> str:
        if abs(self.ratio - 1.0) <= self.band:
            return "same"
        return "better" if (self.ratio > 1.0) == (self.figure in HIGHER) else "worse"


def changes(before: list[Row], after: list[Row], noise: float) -> Iterator[Change]:
    """For every figure that both files have of a row."""
    known = {_name(row): row for row in before}
    for row in after:
        old = known.get(_name(row))
        for figure in (*HIGHER, *LOWER):
            if old is not None and row.get(figure) and old.get(figure):
                band = max(spread(each, figure, noise) for each in (old, row))
                yield Change(_name(row), figure, old[figure], row[figure], band)


def spread(row: Row, figure: str, noise: float) -> float:
    """How far the row's slowest run is off its quickest, relative; `noise` where it did not keep several."""
    runs = row.get(_RUNS.get(figure, ""), ())
    return max(runs) / min(runs) - 1.0 if len(runs) > 1 else noise


def _name(row: Row) -> str:
    return " ".join(str(row[key]) for key in _KEYS if key in row)


def only_in_one(before: list[Row], after: list[Row]) -> list[str]:
    """Rows that cannot be compared."""
    return sorted({_name(row) for row in before} ^ {_name(row) for row in after})


def differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What makes a comparison doubtful."""
    for field in ("kind", "machine", "workload", "threads"):
        if before.get(field) != after.get(field):
            yield f"{field} differs: {before.get(field)} / {after.get(field)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--noise", type=float, default=0.05, help="band of rows that kept no single runs")
    given = parser.parse_args()
    before, after = (json.loads(path.read_text()) for path in (given.before, given.after))
    for line in differences(before, after):
        print(f"note: {line}")
    print(f"{before['commit']} -> {after['commit']}")
    for change in changes(before["rows"], after["rows"], given.noise):
        print(
            f"{change.row:<60}{change.figure:<22}{change.before:>12.2f}{change.after:>12.2f}{change.ratio:>8.2f}x"
            f"  ±{change.band:.0%}  {change.verdict}"
        )
    for name in only_in_one(before["rows"], after["rows"]):
        print(f"in one file only: {name}")


if __name__ == "__main__":
    main()
