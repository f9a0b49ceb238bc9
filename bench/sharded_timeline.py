"""A few steps of two ranks as SVG: one lane for planning, one for each rank's computing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _MARGIN, _LABEL = 860, 16, 130
_LANE, _GAP = 22, 6
_COLOURS = ("#d9480f", "#748ca3")
"""Steps take turns, so that one is told from the next."""
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:15px;font-weight:600}"
    ".lane{fill:#8c959f;fill-opacity:.12}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)
_LANES = (
    ("rank 0: plan", (("plan_begin", "plan_end"),)),
    ("rank 0: encode, send", (("encode_begin", "send_end"),)),
    ("rank 0: compute", (("begin_0", "end_0"),)),
    ("rank 1: compute", (("begin_1", "end_1"),)),
)


def draw_timelines(timelines: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """`timelines`: steps by the heading they go under; times in seconds."""
    body: list[str] = []
    y = _MARGIN
    for heading, steps in timelines.items():
        start = min(step["plan_begin"] for step in steps)
        end = max(step["end_1"] for step in steps)
        scale = (_WIDTH - 2 * _MARGIN - _LABEL) / (end - start)
        y += 14
        told = f"{len(steps)} decode steps, {heading}: {1000 * (end - start):.1f} ms"
        body.append(f'<text class="title" x="{_MARGIN}" y="{y}">{escape(told)}</text>')
        y += 10
        for label, spans in _LANES:
            body.append(f'<text x="{_MARGIN}" y="{y + 15}">{escape(label)}</text>')
            left = _MARGIN + _LABEL
            width = _WIDTH - _MARGIN - left
            body.append(f'<rect class="lane" x="{left}" y="{y}" width="{width}" height="{_LANE}"/>')
            for number, step in enumerate(steps):
                for begin, done in spans:
                    x = left + (step[begin] - start) * scale
                    wide = max(1.0, (step[done] - step[begin]) * scale)
                    colour = _COLOURS[number % 2]
                    body.append(f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{_LANE}" fill="{colour}"/>')
            y += _LANE + _GAP
        y += _MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *body, "</svg>", ""])
