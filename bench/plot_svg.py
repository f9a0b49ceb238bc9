"""Grouped bars as SVG text: horizontal, a bar's name at its left, its value at its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

_WIDTH, _MARGIN, _LABEL, _VALUE = 860, 16, 250, 76
_BAR, _GAP, _GROUP_GAP, _HEADING = 18, 5, 18, 22
_OURS, _OTHERS = "#d9480f", "#748ca3"
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:15px;font-weight:600}"
    ".group{font-weight:600}.axis{stroke:#8c959f;stroke-width:1}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One value, 0 or more."""

    label: str
    value: float
    ours: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Bars under one heading."""

    label: str
    bars: tuple[Bar, ...]
    own_scale: bool = False
    """Whether its longest bar fills the width, whatever other groups hold."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Groups under one title."""

    title: str
    unit: str
    groups: tuple[Group, ...]
    top: float | None = None
    """What the full width stands for; the largest value unless given."""


def draw(chart: Chart) -> str:
    """The chart as a standalone SVG document."""
    body: list[str] = []
    y = _MARGIN + 16
    body.append(f'<text class="title" x="{_MARGIN}" y="{y}">{escape(chart.title)}</text>')
    y += _GROUP_GAP
    largest = max((bar.value for group in chart.groups for bar in group.bars), default=0.0)
    for group in chart.groups:
        own = max((bar.value for bar in group.bars), default=0.0)
        top = own if group.own_scale else max(chart.top or 0.0, largest)
        body += _group(group, y, top or 1.0, chart.unit)
        y += _HEADING + len(group.bars) * (_BAR + _GAP) + _GROUP_GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" role="img">'
    )
    return "\n".join([head, f"<title>{escape(chart.title)}</title><style>{_STYLE}</style>", *body, "</svg>\n"])


def _group(group: Group, y: int, top: float, unit: str) -> Iterator[str]:
    yield f'<text class="group" x="{_MARGIN}" y="{y + 14}">{escape(group.label)}</text>'
    left, room = _MARGIN + _LABEL, _WIDTH - 2 * _MARGIN - _LABEL - _VALUE
    y += _HEADING
    bottom = y + len(group.bars) * (_BAR + _GAP) - _GAP
    yield f'<line class="axis" x1="{left}" y1="{y}" x2="{left}" y2="{bottom}"/>'
    for bar in group.bars:
        width = room * bar.value / top
        middle = y + _BAR - 5
        yield f'<text x="{left - 8}" y="{middle}" text-anchor="end">{escape(bar.label)}</text>'
        colour = _OURS if bar.ours else _OTHERS
        yield f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>'
        yield f'<text x="{left + width + 6:.1f}" y="{middle}">{_shown(bar.value)} {escape(unit)}</text>'
        y += _BAR + _GAP


def _shown(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
