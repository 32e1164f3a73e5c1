"""The charts of a report: lines, bars and matrices as figures of Plotly, and numbers as they are shown.

A line is drawn from the lowest and highest point of each of a few hundred buckets, so that the page of a long run stays
small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysurl.report.plotted import figure, words

Floats = NDArray[np.float64]

BUCKETS = 300  # a line is drawn from at most two points (lowest and highest) of each bucket
DOTTED_UP_TO = 30  # points up to which each one is marked
SMOOTHED_FROM = 40  # points from which on a per-step series is smoothed
LOG = {"type": "log", "dtick": 1, "exponentformat": "none"}
COLOURS = 6  # of lines, then they come again, dashed


@dataclass(frozen=True)
class Series:
    """`x` and `y` (n,), x rising; `smooth`: draw a moving average in front of the faint raw line; `spread` (n,): a line
    of so much up and down at each point, nothing where it is not a number."""

    name: str
    x: Floats
    y: Floats
    smooth: bool = False
    spread: Floats | None = None

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
class Bar:
    """A bar from zero; `between`: low and high end of its interval, where one is known."""

    name: str
    value: float
    between: tuple[float, float] | None = None
    strong: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str,
    unit: str = "",
    note: str = "",
    levels: Sequence[Level] = (),
    large: bool = False,
    log: bool = False,
) -> str:
    """HTML of one chart, or "" where no series has a point. `note` explains the quantity in a few words; `log`: x,
    which is above zero, by its orders of magnitude."""
    series = [s for s in series if len(s.x)]
    if not series:
        return ""
    traces: list[dict[str, Any]] = []
    for i, s in enumerate(series):
        colour, dash = f"var(--s{1 + i % COLOURS})", "dash" if i % (2 * COLOURS) >= COLOURS else "solid"
        smooth = s.smooth and len(s.y) >= SMOOTHED_FROM
        if smooth:
            raw = {"opacity": 0.3, "hoverinfo": "skip", "showlegend": False}
            traces.append(_line(s.x, s.y, colour, 1) | raw)
        average = moving_average(s.y) if smooth else s.y
        name = {"name": words(s.name), "hovertemplate": f"%{{y:.4~g}}{unit}<extra>{words(s.name)}</extra>"}
        traces.append(_line(s.x, average, colour, 2, dash) | name | _spread(s, colour))
    layout: dict[str, Any] = {
        "hovermode": "x unified",
        "showlegend": len(series) > 1,
        "xaxis": {"title": {"text": words(x_name)}, "hoverformat": ".4~g", "tickangle": 0}
        | (LOG if log else {}),
        "yaxis": {"ticksuffix": unit, "rangemode": "normal"} | _whole(series, levels),
        **_levels(levels, unit),
    }
    return figure(
        title, traces, layout, note=note, height=290 if large else 190, kind="large" if large else ""
    )


def _line(x: Floats, y: Floats, colour: str, width: int, dash: str = "solid") -> dict[str, Any]:
    keep = thinned(y)
    dotted = len(x) <= DOTTED_UP_TO
    return {
        "type": "scatter",
        "mode": "lines+markers" if dotted else "lines",
        "x": x[keep],
        "y": y[keep],
        "line": {"color": colour, "width": width} | ({} if dash == "solid" else {"dash": dash}),
        "marker": {"size": 6, "color": colour},
    }


def _spread(series: Series, colour: str) -> dict[str, Any]:
    if series.spread is None or not np.isfinite(series.spread).any():
        return {}
    look = {"type": "data", "color": colour, "thickness": 1.2, "width": 3}
    return {"error_y": look | {"array": series.spread[thinned(series.y)]}}


def thinned(y: Floats) -> NDArray[np.int64]:
    """Places of the lowest and the highest point of each bucket, and of both ends; all of a short line."""
    keep = np.arange(len(y))
    if len(y) <= 2 * BUCKETS:
        return keep
    buckets = np.array_split(keep, BUCKETS)
    chosen = [i for b in buckets for i in (b[y[b].argmin()], b[y[b].argmax()])]
    return np.unique([0, *chosen, len(y) - 1])


def _whole(series: Sequence[Series], levels: Sequence[Level]) -> dict[str, Any]:
    """A range of its own where the values are equal but for rounding, which Plotly would blow up."""
    values = np.concatenate([*(s.y for s in series), [level.value for level in levels]])
    low, high = float(values.min()), float(values.max())
    if high - low > 1e-6 * max(abs(low), abs(high)):
        return {}
    pad = 0.1 * abs(high) or 1.0
    return {"range": [low - pad, high + pad]}


def _levels(levels: Sequence[Level], unit: str) -> dict[str, Any]:
    """Dashed lines across, and their names, the lower of two below its line."""
    lines, names = [], []
    ordered = sorted(levels, key=lambda level: level.value)
    for i, level in enumerate(ordered):
        at = {"xref": "paper", "yref": "y", "y": level.value}
        style = {"color": "var(--soft)", "width": 1.2, "dash": "dash"}
        lines.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level.value, "y1": level.value}
                     | {"line": style})  # fmt: skip
        under = len(ordered) > 1 and i == 0
        text = f"{words(level.name)} {number(level.value)}{unit}"
        look = {"showarrow": False, "xanchor": "right", "yanchor": "top" if under else "bottom", "x": 1}
        names.append(at | look | {"text": text, "font": {"size": 11, "color": "var(--soft)"}})
    return {"shapes": lines, "annotations": names} if lines else {}


def bar_chart(
    title: str,
    bars: Sequence[Bar],
    *,
    unit: str = "",
    note: str = "",
    most: float | None = None,
    height: int | None = None,
) -> str:
    """Horizontal bars from zero, the first on top, with whiskers where an interval is known; "" without bars."""
    bars = [bar for bar in bars if math.isfinite(bar.value)][::-1]
    if not bars:
        return ""
    ends = [bar.between or (bar.value, bar.value) for bar in bars]
    trace = {
        "type": "bar",
        "orientation": "h",
        # their places, as two may have one name
        "y": list(range(len(bars))),
        "x": [bar.value for bar in bars],
        "marker": {"color": ["var(--s1)" if bar.strong else "var(--bar)" for bar in bars]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(high - bar.value, 0) for bar, (_, high) in zip(bars, ends, strict=True)],
            "arrayminus": [max(bar.value - low, 0) for bar, (low, _) in zip(bars, ends, strict=True)],
            "color": "var(--text)",
            "thickness": 1.2,
            "width": 3,
            "visible": any(bar.between for bar in bars),
        },
        "customdata": [words(bar.name) + _interval(bar, unit) for bar in bars],
        "hovertemplate": f"%{{customdata}}: %{{x:.4~g}}{unit}<extra></extra>",
    }
    layout = {
        "xaxis": {"ticksuffix": unit, "rangemode": "tozero", **({"range": [0, most]} if most else {})},
        "yaxis": {
            "tickvals": list(range(len(bars))),
            "ticktext": [words(shortened(bar.name)) for bar in bars],
            "showgrid": False,
        },
        "bargap": 0.3,
        "showlegend": False,
    }
    return figure(title, [trace], layout, note=note, height=height or 54 + 22 * len(bars))


def _interval(bar: Bar, unit: str) -> str:
    return f" ({number(bar.between[0])} to {number(bar.between[1])}{unit})" if bar.between else ""


def matrix(
    title: str,
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    titles: tuple[str, str],
    texts: Sequence[Sequence[str]] | None = None,
    hovers: Sequence[Sequence[str]] | None = None,
    note: str = "",
    style: Mapping[str, Any] | None = None,
    written: Sequence[tuple[int, int, str]] = (),
) -> str:
    """A coloured matrix (R, C), the first row on top; `titles`: of the rows and of the columns; `written`: what stands
    at a place (row, column) that has no value."""
    trace = {
        "type": "heatmap",
        "z": values,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "colorscale": [[0, "var(--grid)"], [1, "var(--s1)"]],
        "hoverongaps": False,
        **({"text": texts, "texttemplate": "%{text}"} if texts is not None else {}),
        **(
            {"customdata": hovers, "hovertemplate": "%{customdata}<extra></extra>"}
            if hovers is not None
            else {}
        ),
        **(style or {}),
    }
    # the last of tilted names ends beside the matrix
    tilted = {"side": "top", "tickangle": -45 if len(columns) > 6 else 0, "automargin": True}
    layout = {
        "xaxis": _names(columns, titles[1]) | tilted,
        "yaxis": _names(rows, titles[0]) | {"autorange": "reversed"},
        "margin": {"l": 44, "r": 10, "t": 60, "b": 10},
        "annotations": [
            {
                "x": j,
                "y": i,
                "text": words(text),
                "showarrow": False,
                "font": {"color": "var(--bad)", "size": 11},
            }
            for i, j, text in written
        ],
    }
    return figure(title, [trace], layout, note=note, height=matrix_height(len(rows)), kind="large")


def matrix_height(rows: int) -> int:
    """Pixels of a matrix, for what stands beside it."""
    return 110 + min(34 * rows, 560)


def _names(names: Sequence[str], title: str) -> dict[str, Any]:
    shown = [words(shortened(name)) for name in names]
    return {
        "tickvals": list(range(len(names))),
        "ticktext": shown,
        "title": {"text": words(title)},
        "showgrid": False,
        "zeroline": False,
        "ticklabeloverflow": "allow",
    }


def shortened(name: str, most: int = 22) -> str:
    """The beginning of a long name."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def moving_average(y: Floats) -> Floats:
    """Centred mean of y (n,) over a fiftieth of its length; windows are cut at both ends."""
    half = max(1, len(y) // 100)
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(y))
    return np.asarray((total[high] - total[low]) / (high - low), np.float64)


def number(value: float) -> str:
    """Four significant digits, thousands in groups: 12,340 · 84.31 · −0.06 · 1.5e-05."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{abs(value):,.0f}" if abs(value) >= 1000 else f"{abs(value):.4g}"
    return f"−{text}" if value < 0 else text
