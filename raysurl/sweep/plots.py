"""The pictures of a sweep's page beside Optuna's own: curves, heat maps and bars of its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysurl.report.charts import Bar, Series, bar_chart, line_chart, matrix
from raysurl.sweep.results import CellResult, Sweep
from raysurl.sweep.space import INACTIVE
from raysurl.sweep.study import is_number

CURVES = 6  # series that one chart can show
GROUPS, READ, BARS = 4, 24, 48  # charts of a table; bars that are read at once, and at most, in one chart
ORDERS = 50  # largest by smallest number from which on an axis is logarithmic


def curves(sweep: Sweep) -> list[str]:
    """For each combination of the other axes but one: the metric over a numeric axis, ours and the paper's."""
    axis = sweep.space.columns or sweep.axes[-1]
    labels = sweep.labels(axis)
    if sweep.space.search != "grid" or len(labels) < 2 or not all(map(is_number, labels)):
        return []
    groups = sweep.labels(sweep.grouped) if sweep.grouped and sweep.grouped != axis else [None]
    charts = [_curve(sweep, axis, group, paper=paper) for paper in (False, True) for group in groups]
    return [chart for chart in charts if chart]


def _curve(sweep: Sweep, axis: str, group: str | None, *, paper: bool) -> str:
    at = sweep.axes.index(axis)
    cells = [e for e in sweep.entries if not e.why and (not group or group in e.labels)]
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for entry in cells:
        value, spread = (entry.paper, None) if paper else (entry.mean, entry.std)
        if value is not None:
            point = (float(entry.labels[at]), value, math.nan if spread is None else spread)
            lines.setdefault(_others(sweep, entry, axis), []).append(point)
    series = [_series(name or sweep.space.metric, points) for name, points in lines.items()]
    title = " ".join(filter(None, ["The paper" if paper else "Here", group]))
    lost = [] if paper else [e for e in cells if e.outcomes and e.mean is None]
    log = _spans([float(label) for label in sweep.labels(axis)])
    note = sweep.space.metric + _without_number(sweep, lost)
    return line_chart(title, series[:CURVES], x_name=axis, note=note, log=log)


def _without_number(sweep: Sweep, lost: Sequence[CellResult]) -> str:
    said = "; ".join(f"{sweep.name(entry)} {entry.text()}" for entry in lost)
    return f"; without a number: {said}" if said else ""


def _series(name: str, points: Sequence[tuple[float, float, float]]) -> Series:
    """Of x, y and what y deviates by between seeds."""
    array = np.array(sorted(points), np.float64)
    return Series(name, array[:, 0], array[:, 1], spread=array[:, 2])


def _spans(values: Sequence[float]) -> bool:
    """Whether numbers lie so far apart that their orders of magnitude show more than they do."""
    return min(values) > 0 and max(values) >= ORDERS * min(values)


def as_in_the_paper(sweep: Sweep) -> list[str]:
    """Here and in the paper, one chart each: lines over an axis of three numbers or more, else bars; of many cells in
    rows and columns a coloured matrix."""
    if sweep.grouped and len(sweep.labels(sweep.grouped)) > GROUPS:
        sweep = replace(sweep, space=sweep.space.model_copy(update={"group": ""}))
    axis = sweep.space.columns or sweep.axes[-1]
    labels = sweep.labels(axis)
    if sweep.space.search == "grid" and len(labels) > 2 and all(map(is_number, labels)):
        return curves(sweep)
    if len(sweep.entries) > READ and (maps := heat_maps(sweep)):
        return [maps]
    groups = sweep.labels(sweep.grouped) if sweep.grouped else []
    return [chart for group in (groups if len(groups) > 1 else [""]) for chart in bars(sweep, group)]


def bars(sweep: Sweep, group: str) -> list[str]:
    """The cells of a group (none: "") as bars from zero, here and in the paper; the note names cells that were lost."""
    cells = [e for e in sweep.entries if not e.why and (not group or group in e.labels)]
    if sweep.space.search != "grid" or not 1 < len(cells) <= BARS:
        return []
    ran = [e for e in cells if e.outcomes]
    here = [Bar(sweep.name(e), e.mean or 0.0, _around(e), strong=True) for e in ran]
    paper = [Bar(sweep.name(e), e.paper) for e in cells if e.paper is not None]
    note = f"{cells[0].metric}; lines: the standard deviation between seeds"
    note += _without_number(sweep, [e for e in ran if e.mean is None])
    charts = [
        bar_chart(f"Here {group}".strip(), here, note=note),
        bar_chart(f"The paper {group}".strip(), paper, note="its numbers"),
    ]
    return [chart for chart in charts if chart]


def _around(entry: CellResult) -> tuple[float, float] | None:
    """Mean minus and plus the standard deviation between seeds."""
    if entry.mean is None or entry.std is None:
        return None
    return entry.mean - entry.std, entry.mean + entry.std


def _others(sweep: Sweep, entry: CellResult, axis: str) -> str:
    varied = [a for a in sweep.axes if a not in (axis, sweep.grouped) and len(sweep.labels(a)) > 1]
    return ", ".join(f"{a.rpartition('.')[2]} {entry.labels[sweep.axes.index(a)]}" for a in varied)


def effects(sweep: Sweep) -> str:
    """For each axis: the mean over all other axes of the cells that have a number, as bars from zero."""
    parts = []
    for i, axis in enumerate(sweep.axes):
        labels = [label for label in sweep.labels(axis) if label != INACTIVE]
        if len(labels) < 2 or sweep.space.axes[axis].range is not None:
            continue
        means: dict[str, float] = {}
        for label in labels:
            values = [e.mean for e in sweep.entries if e.labels[i] == label and e.mean is not None]
            means[label] = float(np.mean(values)) if values else math.nan
        best = _best(sweep, means)
        bars = [Bar(label, value, strong=label == best) for label, value in means.items()]
        parts.append(bar_chart(axis, bars, note=f"mean {sweep.space.metric}; the best in colour"))
    return "".join(parts)


def _best(sweep: Sweep, means: dict[str, float]) -> str:
    finite = {k: v for k, v in means.items() if math.isfinite(v)}
    pick = max if sweep.higher_is_better else min
    return pick(finite, key=lambda k: finite[k]) if finite else ""


def heat_maps(sweep: Sweep) -> str:
    """Two axes with at least two values each: a coloured matrix of ours and one of the paper's, per group."""
    axes = [a for a in sweep.axes if a != sweep.grouped and len(sweep.labels(a)) > 1]
    if sweep.space.search != "grid" or len(axes) != 2:
        return ""
    row, column = sorted(axes, key=lambda a: len(sweep.labels(a)))
    parts = []
    for group in sweep.labels(sweep.grouped) if sweep.grouped else [""]:
        entries = [e for e in sweep.entries if not e.why and (not group or group in e.labels)]
        for title, paper in (("here", False), ("in the paper", True)):
            name = " ".join(filter(None, [group, title]))
            parts.append(_heat(sweep, entries, row, column, name[0].upper() + name[1:], paper=paper))
    return "".join(parts)


def _heat(
    sweep: Sweep, entries: Sequence[CellResult], row: str, column: str, title: str, *, paper: bool
) -> str:
    at = sweep.axes.index(row), sweep.axes.index(column)
    found = {(e.labels[at[0]], e.labels[at[1]]): e for e in entries}
    values = {k: e.paper if paper else e.mean for k, e in found.items()}
    finite = sorted(v for v in values.values() if v is not None)
    if not finite:
        return ""
    low = finite[len(finite) // 20 if len(finite) >= 20 else 0]
    middle = float(np.median(finite))
    low = max(low, middle - 3 * (finite[-1] - middle or 1.0))  # a collapsed cell must not flatten the others
    rows, columns = sweep.labels(row), sweep.labels(column)
    shown = np.array([[_or_nan(values.get((r, c))) for c in columns] for r in rows])
    texts = [[_text(found.get((r, c)), values.get((r, c)), paper=paper) for c in columns] for r in rows]
    span = {"zmin": low, "zmax": finite[-1] if finite[-1] > low else low + 1, "hoverinfo": "skip"}
    titles = sweep.short(row), sweep.short(column)
    lost = _lost(texts, shown)
    return matrix(title, shown, rows, columns, titles=titles, texts=texts, style=span, written=lost)


def _lost(texts: Sequence[Sequence[str]], shown: NDArray[np.float64]) -> list[tuple[int, int, str]]:
    """What is written where there is no number to colour."""
    return [(i, j, texts[i][j]) for i, j in np.argwhere(np.isnan(shown)).tolist() if texts[i][j]]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _text(entry: CellResult | None, value: float | None, *, paper: bool) -> str:
    if entry is None or (value is None and paper):
        return ""
    return entry.text().partition(" (")[0] if value is None else f"{value:.2f}"
