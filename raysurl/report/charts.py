"""Line charts for a page that needs no script: lines are SVG, labels and hover values are HTML over it.

The SVG is stretched to the width it is given while text keeps its size, so a chart reads well on a phone too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BUCKETS = 300  # a line is drawn from at most two points (lowest and highest) of each bucket
HOVERS = 80  # places along the x axis that show values
DOTTED_UP_TO = 30  # points up to which each one is marked
SMOOTHED_FROM = 40  # points from which on a per-step series is smoothed


@dataclass(frozen=True)
class Series:
    """`x` and `y` (n,), x rising; `smooth`: draw a moving average in front of the faint raw line."""

    name: str
    x: Floats
    y: Floats
    smooth: bool = False

    @classmethod
    def of(cls, name: str, points: Sequence[tuple[float, float]], *, smooth: bool = False) -> Series:
        """A series of the finite points."""
        array = np.array([p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])], np.float64)
        array = array.reshape(-1, 2)
        return cls(name, array[:, 0], array[:, 1], smooth)


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with, labelled at its right end."""

    name: str
    value: float


@dataclass(frozen=True)
class Frame:
    """The plotted range; `left` and `top` give positions in percent of the plot."""

    x0: float
    x1: float
    y0: float
    y1: float

    def left(self, x: float) -> float:
        return 100 * (x - self.x0) / (self.x1 - self.x0)

    def top(self, y: float) -> float:
        return 100 * (self.y1 - y) / (self.y1 - self.y0)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str,
    unit: str = "",
    note: str = "",
    levels: Sequence[Level] = (),
    large: bool = False,
) -> str:
    """HTML of one chart, or "" where no series has a point. `note` explains the quantity in a few words."""
    series = [s for s in series if len(s.x)]
    if not series:
        return ""
    drawn = [moving_average(s.y) if s.smooth and len(s.y) >= SMOOTHED_FROM else s.y for s in series]
    frame = _frame(series, drawn, levels)
    last = ", ".join(
        f"{s.name} ends at {number(float(y[-1]))}{unit}" for s, y in zip(series, drawn, strict=True)
    )
    parts = [_grid(frame, unit, 6 if large else 4), _levels(frame, levels, unit)]
    lines = [_level_line(frame, level) for level in levels]
    for i, (s, y) in enumerate(zip(series, drawn, strict=True), 1):
        if y is not s.y:
            lines.append(f'<path class="raw s{i}" d="{_path(frame, s.x, s.y)}"/>')
        lines.append(f'<path class="line s{i}" d="{_path(frame, s.x, y)}"/>')
        if len(s.x) <= DOTTED_UP_TO:
            lines += [f'<path class="dot s{i}" d="{_point(frame, *p)}"/>' for p in zip(s.x, y, strict=True)]
    return (
        f'<figure class="chart{" large" if large else ""}"><figcaption><b>{escape(title)}</b>'
        f"{_legend(series, drawn)}{f'<span class=note>{escape(note)}</span>' if note else ''}</figcaption>"
        f'<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(f"{title}: {last}")}">{"".join(lines)}</svg>{"".join(parts)}'
        f'{_hovers(frame, series, drawn, x_name, unit)}</div><div class="x-name">{escape(x_name)}</div></figure>'
    )


def moving_average(y: Floats) -> Floats:
    """Centred mean of y (n,) over a fiftieth of its length; windows are cut at both ends."""
    half = max(1, len(y) // 100)
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(y))
    return np.asarray((total[high] - total[low]) / (high - low), np.float64)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in [low, high], steps of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= 0.75 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """Four significant digits, thousands in groups: 12,340 · 84.31 · −0.06 · 1.5e-05."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{abs(value):,.0f}" if abs(value) >= 1000 else f"{abs(value):.4g}"
    return f"−{text}" if value < 0 else text


def _frame(series: Sequence[Series], drawn: Sequence[Floats], levels: Sequence[Level]) -> Frame:
    x0, x1 = min(float(s.x[0]) for s in series), max(float(s.x[-1]) for s in series)
    # A few outliers of a raw line (the first steps) may leave the plot; what is read, the average, may not.
    raw = [np.percentile(s.y, [1, 99]) for s in series]
    values = np.concatenate([*raw, *drawn, [level.value for level in levels]])
    y0, y1 = float(values.min()), float(values.max())
    flat = y1 - y0 <= 1e-6 * max(abs(y0), abs(y1))  # equal but for rounding
    pad = (0.1 * abs(y1) or 1.0) if flat else 0.06 * (y1 - y0)
    low = y0 - pad if y0 < 0 or y0 - pad >= 0 else 0.0  # no negative axis for what cannot be negative
    side = 0.02 * (x1 - x0) or 0.5 if any(len(s.x) <= DOTTED_UP_TO for s in series) else 0.0  # room for dots
    return Frame(x0 - side, x1 + side, low, y1 + pad)


def _path(frame: Frame, x: Floats, y: Floats) -> str:
    keep = np.arange(len(x))
    if len(x) > 2 * BUCKETS:
        buckets = np.array_split(keep, BUCKETS)
        keep = np.unique([i for b in buckets for i in (b[y[b].argmin()], b[y[b].argmax()])])
    return "M" + "L".join(f"{10 * frame.left(x[i]):.1f} {10 * frame.top(y[i]):.1f}" for i in keep)


def _point(frame: Frame, x: float, y: float) -> str:
    """A dot: a line of no length with round ends, which the stretching of the SVG leaves round."""
    return f"M{10 * frame.left(x):.1f} {10 * frame.top(y):.1f}h.01"


def _grid(frame: Frame, unit: str, count: int) -> str:
    y_ticks = "".join(
        f'<i class="y" style="top:{frame.top(v):.2f}%"><span>{number(round(v, 12))}{escape(unit)}</span></i>'
        for v in ticks(frame.y0, frame.y1, count)
    )
    x_ticks = "".join(
        f'<i class="x" style="left:{frame.left(v):.2f}%"><span>{number(round(v, 12))}</span></i>'
        for v in ticks(frame.x0, frame.x1, count)
    )
    return y_ticks + x_ticks


def _level_line(frame: Frame, level: Level) -> str:
    return f'<path class="level" d="M0 {10 * frame.top(level.value):.1f}h1000"/>'


def _levels(frame: Frame, levels: Sequence[Level], unit: str) -> str:
    """Labels of the levels, at least a line height apart: above the line, or below it where one is near."""
    labels: list[str] = []
    above = math.inf
    for level in sorted(levels, key=lambda item: item.value):
        top = frame.top(level.value)
        side = "under" if above - top < 10 and not labels[-1].startswith('<b class="under') else "over"
        if side == "under":  # the lower of the two goes below its line instead
            labels[-1] = labels[-1].replace('class="over', 'class="under', 1)
            side = "over"
        labels.append(
            f'<b class="{side}" style="top:{top:.2f}%">{escape(level.name)} {number(level.value)}{escape(unit)}</b>'
        )
        above = top
    return "".join(labels)


def _legend(series: Sequence[Series], drawn: Sequence[Floats]) -> str:
    if len(series) < 2:
        return ""
    items = (f'<span class="key s{i}">{escape(s.name)}</span>' for i, s in enumerate(series, 1))
    return f'<span class="legend">{"".join(items)}</span>'


def _hovers(frame: Frame, series: Sequence[Series], drawn: Sequence[Floats], x_name: str, unit: str) -> str:
    """Strips along the x axis; under the pointer each shows the values of the series at its middle."""
    longest = max(series, key=lambda s: len(s.x))
    places = np.unique(np.linspace(0, len(longest.x) - 1, min(HOVERS, len(longest.x))).round().astype(int))
    lefts = [frame.left(longest.x[i]) for i in places]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(lefts)), 100.0]
    strips = []
    for place, left, low, high in zip(places, lefts, edges, edges[1:], strict=False):
        x = float(longest.x[place])
        rows, dots = [f"{escape(x_name)} {number(x)}"], []
        for i, (s, y) in enumerate(zip(series, drawn, strict=True), 1):
            at = int(np.abs(s.x - x).argmin())
            name = f'<em class="s{i}">{escape(s.name)}</em> ' if len(series) > 1 else ""
            raw = f" (here {number(float(s.y[at]))})" if y is not s.y else ""
            rows.append(f"{name}{number(float(y[at]))}{escape(unit)}{raw}")
            inside = 100 * (left - low) / (high - low) if high > low else 50
            dots.append(f'<u class="s{i}" style="left:{inside:.0f}%;top:{frame.top(float(y[at])):.1f}%"></u>')
        side = "right" if left > 55 else "left"
        strips.append(
            f'<div class="hit" style="left:{low:.2f}%;width:{high - low:.2f}%">{"".join(dots)}'
            f'<span class="tip {side}">{"<br>".join(rows)}</span></div>'
        )
    return "".join(strips)
