"""Charts as SVG: a picture that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

# Okabe and Ito's colours, told apart by everybody.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 44, 40
TITLE_HEIGHT = 64
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a chart."""

    name: str
    points: Points
    steps: bool = False
    """Drawn as a histogram: each value holds until the next x."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart. y begins at 0; x begins at its least value, logarithmic where `log_x`."""

    title: str
    x_label: str
    lines: tuple[Line, ...]
    x_text: Callable[[float], str]
    y_text: Callable[[float], str]
    log_x: bool = False


def page(title: str, subtitle: str, charts: Sequence[Chart], columns: int = 2) -> str:
    """All charts under one title."""
    rows = math.ceil(len(charts) / columns)
    width, height = columns * WIDTH, TITLE_HEIGHT + rows * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(16, 28, title, size=17, weight=600),
        _text(16, 48, subtitle, colour="#666"),
    ]
    for number, chart in enumerate(charts):
        row, column = divmod(number, columns)
        parts.append(f'<g transform="translate({column * WIDTH},{TITLE_HEIGHT + row * HEIGHT})">')
        parts += _chart(chart)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            found = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) > 2:
                return found[:: math.ceil(len(found) / 6)]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= least * 0.999)


def _chart(chart: Chart) -> Iterator[str]:
    yield _text(LEFT, 18, chart.title, size=13, weight=600)
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points]
    if not xs:
        yield _text(LEFT, HEIGHT / 2, "nothing to show", colour="#666")
        return
    low = max(min(xs), 1e-6) if chart.log_x else min(xs)
    high = max(max(xs), low * 1.001 if chart.log_x else low + 1e-9)
    x = _Scale(low, high, LEFT, WIDTH - RIGHT, chart.log_x)
    y = _Scale(0.0, max(max(ys), 1e-9) * 1.05, HEIGHT - BOTTOM, TOP)
    yield from _axes(chart, x, y)
    for number, line in enumerate(chart.lines):
        yield from _line(line, COLOURS[number % len(COLOURS)], x, y)
    if len(chart.lines) > 1:
        yield from _legend(chart.lines)


def _axes(chart: Chart, x: _Scale, y: _Scale) -> Iterator[str]:
    for value in y.ticks():
        yield f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>'
        yield _text(LEFT - 6, y(value) + 4, chart.y_text(value), anchor="end", colour="#666")
    for value in x.ticks():
        yield f'<path d="M{x(value):.1f} {HEIGHT - BOTTOM}v4" stroke="#999"/>'
        yield _text(x(value), HEIGHT - BOTTOM + 16, chart.x_text(value), anchor="middle", colour="#666")
    yield f'<path d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="#999"/>'
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, chart.x_label, anchor="middle", colour="#444")


def _line(line: Line, colour: str, x: _Scale, y: _Scale) -> Iterator[str]:
    if line.steps:
        floor = HEIGHT - BOTTOM
        path = f"M{x(line.points[0][0]):.1f} {floor}"
        for (begin, value), (end, _) in zip(line.points, line.points[1:], strict=False):
            path += f"H{x(begin):.1f}V{y(value):.1f}H{x(end):.1f}"
        yield f'<path d="{path}V{floor}Z" fill="{colour}" fill-opacity=".75"/>'
        return
    points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in line.points)
    yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
    if len(line.points) <= 40:
        for at, value in line.points:
            yield f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="2.6" fill="{colour}"/>'


def _legend(lines: Sequence[Line]) -> Iterator[str]:
    at = float(LEFT)
    for number, line in enumerate(lines):
        yield f'<rect x="{at:.0f}" y="27" width="10" height="3" fill="{COLOURS[number % len(COLOURS)]}"/>'
        yield _text(at + 14, 32, line.name, colour="#444")
        at += 26 + 6.2 * len(line.name)


def _text(
    x: float, y: float, text: str, *, size: int = 11, weight: int = 400, anchor: str = "start", colour: str = "#222"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
