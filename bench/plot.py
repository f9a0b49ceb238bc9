"""Result files as pictures for the docs: `python -m bench.plot bench/results/2026-11-21-peers.json ...`.

Writes SVG into docs/images: <kind>-*.svg, over what was there. Colours are legible on light and dark pages.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.plot_svg import Bar, Chart, Group, draw

_IMAGES = Path(__file__).parent.parent / "docs" / "images"
_OURS = "tokenwire"
Row = dict[str, Any]
Result = dict[str, Any]


def peers_charts(result: Result) -> Iterator[tuple[str, Chart]]:
    """Throughput for each precision class, and what one stream, one long prompt and the memory come to."""
    for precision_class in ("full", "bf16", "8bit"):
        rows = [row for row in result["rows"] if row["precision_class"] == precision_class]
        if not rows:
            continue
        yield f"peers-{precision_class}-throughput", _throughput(rows, f"{precision_class}: {_work(result)}")
        yield f"peers-{precision_class}-alone", _alone(rows, precision_class)


def _work(result: Result) -> str:
    work = result["workload"]
    return f"{work['prompt_tokens']} prompt + {work['new_tokens']} new tokens, {result['machine']['cores']} cores"


def _throughput(rows: list[Row], title: str) -> Chart:
    levels = sorted({row["concurrency"] for row in rows})
    groups = []
    for num in levels:
        bars = [
            Bar(row["variant"], row["tokens_per_s"], row["engine"] == _OURS)
            for row in rows
            if row["concurrency"] == num
        ]
        groups.append(Group(f"{num} at once", tuple(bars)))
    return Chart(f"Generated tokens per second, {title}", "tok/s", tuple(groups))


def _alone(rows: list[Row], precision_class: str) -> Chart:
    first = [row for row in rows if row["concurrency"] == min(each["concurrency"] for each in rows)]
    figures = (
        ("decode tok/s, one stream", "decode_tokens_per_s"),
        ("TTFT s, long prompt (less is better)", "ttft_1024_s" if "ttft_1024_s" in first[0] else "ttft_s"),
        ("peak memory MB (less is better)", "rss_mb"),
    )
    groups = tuple(
        Group(label, tuple(Bar(row["variant"], row[field], row["engine"] == _OURS) for row in first), own_scale=True)
        for label, field in figures
    )
    return Chart(f"One request at a time, {precision_class}", "", groups)


def engine_charts(result: Result) -> Iterator[tuple[str, Chart]]:
    """Fractions of the roofline."""
    decode = [row for row in result["rows"] if row["kind"] == "decode"]
    prefill = [row for row in result["rows"] if row["kind"] == "prefill"]
    groups = [
        Group(f"decode, batch {batch}", tuple(_fraction(row) for row in decode if row["batch"] == batch))
        for batch in sorted({row["batch"] for row in decode})
    ]
    groups += [
        Group(f"prefill of {length}", tuple(_fraction(row) for row in prefill if row["length"] == length))
        for length in sorted({row["length"] for row in prefill})
    ]
    work = result["workload"]
    title = f"Share of the roofline: {work['model']}, {work['context']} tokens of context, {result['device']}"
    yield result["kind"], Chart(title, "%", tuple(groups), top=100.0)


def _fraction(row: Row) -> Bar:
    return Bar(row["engine"], 100 * row["fraction_of_limit"], row["engine"] == _OURS)


def kernels_charts(result: Result) -> Iterator[tuple[str, Chart]]:
    """Each kernel's share of what the device reaches, at its largest shape."""
    largest: dict[str, str] = {row["op"]: row["shape"] for row in result["rows"]}
    groups = []
    for op, shape in largest.items():
        rows = [row for row in result["rows"] if (row["op"], row["shape"]) == (op, shape)]
        bars = tuple(
            Bar(
                row["implementation"],
                100 * row["fraction_of_limit"],
                row["implementation"] not in ("torch", "reference"),
            )
            for row in rows
        )
        groups.append(Group(f"{op} {shape}", bars))
    yield "kernels", Chart(f"Share of the device's limit, {result['device']}", "%", tuple(groups), top=100.0)


def charts(result: Result) -> Iterator[tuple[str, Chart]]:
    """Names and charts of a result file. Nothing of a kind that has no chart."""
    kind = result["kind"]
    if kind == "peers":
        yield from peers_charts(result)
    elif kind == "kernels":
        yield from kernels_charts(result)
    elif kind.startswith("engine") and "limits" in result:
        yield from engine_charts(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--to", type=Path, default=_IMAGES)
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    drawn = 0
    for path in given.results:
        for name, chart in charts(json.loads(path.read_text())):
            (given.to / f"{name}.svg").write_text(draw(chart))
            print(given.to / f"{name}.svg")
            drawn += 1
    if not drawn:
        print("no chart for these kinds of results: peers, engine and kernels have some", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
