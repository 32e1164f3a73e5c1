"""The pictures of a sweep's page: curves and heat maps of axes, parallel coordinates and importance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from raysurl.report.charts import Series, line_chart, number
from raysurl.sweep.results import CellResult, Sweep
from raysurl.sweep.search import distribution, objective_values
from raysurl.sweep.space import INACTIVE

CURVES = 6  # series that one chart can show
LEAST = 4  # finished trials from which on importance says anything


def curves(sweep: Sweep) -> list[str]:
    """For each combination of the other axes but one: the metric over a numeric axis, ours and the paper's."""
    axis = sweep.space.columns or sweep.axes[-1]
    labels = sweep.labels(axis)
    if sweep.space.search != "grid" or len(labels) < 2 or not all(map(_is_number, labels)):
        return []
    at = sweep.axes.index(axis)
    charts = []
    for which in ("ours", "paper"):
        for group in sweep.labels(sweep.grouped) if sweep.grouped and sweep.grouped != axis else [None]:
            lines: dict[str, list[tuple[float, float]]] = {}
            for entry in sweep.entries:
                value = entry.mean if which == "ours" else entry.paper
                if entry.why or value is None or (group and group not in entry.labels):
                    continue
                lines.setdefault(_others(sweep, entry, axis), []).append((float(entry.labels[at]), value))
            series = [Series.of(name or sweep.space.metric, sorted(points)) for name, points in lines.items()]
            title = " ".join(filter(None, ["Here" if which == "ours" else "The paper", group]))
            charts.append(line_chart(title, series[:CURVES], x_name=axis, note=sweep.space.metric))
    return [chart for chart in charts if chart]


def _others(sweep: Sweep, entry: CellResult, axis: str) -> str:
    varied = [a for a in sweep.axes if a not in (axis, sweep.grouped) and len(sweep.labels(a)) > 1]
    return ", ".join(f"{a.rpartition('.')[2]} {entry.labels[sweep.axes.index(a)]}" for a in varied)


def effects(sweep: Sweep) -> str:
    """For each axis: the mean over all other axes of the cells that have a number, as bars."""
    parts = []
    for i, axis in enumerate(sweep.axes):
        labels = [label for label in sweep.labels(axis) if label != INACTIVE]
        if len(labels) < 2 or sweep.space.axes[axis].range is not None:
            continue
        means: dict[str, float] = {}
        for label in labels:
            values = [e.mean for e in sweep.entries if e.labels[i] == label and e.mean is not None]
            means[label] = float(np.mean(values)) if values else math.nan
        parts.append(f"<h3>{escape(axis)}</h3>{bars(means, own=_best(sweep, means))}")
    return f'<div class="card">{"".join(parts)}</div>' if parts else ""


def _best(sweep: Sweep, means: dict[str, float]) -> str:
    finite = {k: v for k, v in means.items() if math.isfinite(v)}
    pick = max if sweep.higher_is_better else min
    return pick(finite, key=lambda k: finite[k]) if finite else ""


def bars(values: dict[str, float], own: str = "") -> str:
    """Named bars, from a little below the smallest value so that differences are seen; `own` is marked."""
    finite = [v for v in values.values() if math.isfinite(v)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    base = max(low - 0.25 * (high - low or abs(high) or 1.0), 0.0) if low >= 0 else low
    rows = []
    for name, value in values.items():
        width = 100 * (value - base) / (high - base or 1.0) if math.isfinite(value) else 0.0
        mark = ' class="own"' if name == own else ""
        shown = number(value) if math.isfinite(value) else "–"
        rows.append(
            f'<span{mark}>{escape(name)}</span><div class="bar{" own" if name == own else ""}">'
            f'<i style="width:{max(width, 0):.1f}%;{"background:var(--s1)" if name == own else ""}"></i></div>'
            f"<b>{shown}</b>"
        )
    note = f'<p class="note">Bars begin at {number(base)}.</p>' if base else ""
    return f'<div class="bars">{"".join(rows)}</div>{note}'


def heat_maps(sweep: Sweep) -> str:
    """Two axes with at least two values each: a coloured table of ours and one of the paper's, per group."""
    axes = [a for a in sweep.axes if a != sweep.grouped and len(sweep.labels(a)) > 1]
    if sweep.space.search != "grid" or len(axes) != 2:
        return ""
    row, column = sorted(axes, key=lambda a: len(sweep.labels(a)))
    parts = []
    for group in sweep.labels(sweep.grouped) if sweep.grouped else [""]:
        entries = [e for e in sweep.entries if not e.why and (not group or group in e.labels)]
        for title, paper in (("here", False), ("in the paper", True)):
            if table := _heat(sweep, entries, row, column, paper=paper):
                parts.append(f"<h3>{escape(' '.join(filter(None, [group, title])))}</h3>{table}")
    return f'<div class="card scroll">{"".join(parts)}</div>' if parts else ""


def _heat(sweep: Sweep, entries: Sequence[CellResult], row: str, column: str, *, paper: bool) -> str:
    at = sweep.axes.index(row), sweep.axes.index(column)
    found = {(e.labels[at[0]], e.labels[at[1]]): e for e in entries}
    values = {k: e.paper if paper else e.mean for k, e in found.items()}
    finite = sorted(v for v in values.values() if v is not None)
    if not finite:
        return ""
    low = finite[len(finite) // 20 if len(finite) >= 20 else 0]
    middle = float(np.median(finite))
    low = max(low, middle - 3 * (finite[-1] - middle or 1.0))  # a collapsed cell must not flatten the others
    head = "".join(f"<th>{escape(c)}</th>" for c in sweep.labels(column))
    lines = []
    for r in sweep.labels(row):
        cells = "".join(
            _coloured(found.get((r, c)), values.get((r, c)), low, finite[-1], paper)
            for c in sweep.labels(column)
        )
        lines.append(f"<tr><th>{escape(r)}</th>{cells}</tr>")
    corner = f"{row.rpartition('.')[2]} ↓ {column.rpartition('.')[2]} →"
    return f"<table class=heat><tr><th>{escape(corner)}</th>{head}</tr>{''.join(lines)}</table>"


def _coloured(entry: CellResult | None, value: float | None, low: float, high: float, paper: bool) -> str:
    if entry is None:
        return "<td></td>"
    if value is None:
        return f"<td class=lost>{'' if paper else escape(entry.text().partition(' (')[0])}</td>"
    share = min(max((value - low) / (high - low or 1.0), 0.0), 1.0)
    return f'<td style="background:color-mix(in srgb,var(--s1) {8 + 52 * share:.0f}%,var(--card))">{value:.2f}</td>'


# -------------------------------------------------------------------- open searches


def parallel(sweep: Sweep) -> str:
    """Parallel coordinates: a line per finished trial over the axes to its result; the best fifth in colour."""
    done = [e for e in sweep.entries if e.mean is not None]
    if sweep.space.search != "optuna" or len(done) < 2:
        return ""
    sign = 1 if sweep.higher_is_better else -1
    order = sorted(done, key=lambda e: sign * (e.mean or 0.0))
    axes = [*sweep.axes, sweep.space.metric]
    places = {axis: _places(sweep, axis, done) for axis in axes}
    left = {axis: 60 + 880 * i / max(len(axes) - 1, 1) for i, axis in enumerate(axes)}
    lines = []
    for i, entry in enumerate(order):
        labels = [*entry.labels, str(entry.mean)]
        at = [(left[a], places[a][label]) for a, label in zip(axes, labels, strict=True) if label != INACTIVE]
        best = i >= len(order) - max(len(order) // 5, 1)
        style = "stroke:var(--s2);stroke-width:2" if best else "stroke:var(--soft);opacity:.35"
        path = "L".join(f"{x:.1f} {30 + 230 * (1 - y):.1f}" for x, y in at)
        lines.append(
            f'<path d="M{path}" style="fill:none;{style}"><title>{escape(", ".join(labels))}</title></path>'
        )
    for axis in axes:
        x = left[axis]
        low, high = _ends(places[axis])
        lines.append(
            f'<path d="M{x:.1f} 30V260" style="stroke:var(--line);stroke-width:2"/>'
            f'<text x="{x:.1f}" y="14" text-anchor="middle">{escape(axis.rpartition(".")[2])}</text>'
            f'<text x="{x:.1f}" y="278" text-anchor="middle">{escape(low)}</text>'
            f'<text x="{x:.1f}" y="27" text-anchor="middle">{escape(high)}</text>'
        )
    style = "font:12px system-ui,sans-serif;fill:var(--soft);width:100%"
    return f'<div class="card"><svg viewBox="0 0 1000 285" style="{style}">{"".join(lines)}</svg></div>'


def _places(sweep: Sweep, axis: str, entries: Sequence[CellResult]) -> dict[str, float]:
    """Label -> height in [0, 1]: by value, by logarithm for a log-uniform axis, by order for names."""
    if axis == sweep.space.metric:
        labels, log = [str(e.mean) for e in entries], False
    else:
        i = sweep.axes.index(axis)
        labels = [e.labels[i] for e in entries if e.labels[i] != INACTIVE]
        log = sweep.space.axes[axis].loguniform is not None
        labels = sorted(set(labels), key=lambda t: float(t) if _is_number(t) else 0.0)
    if all(map(_is_number, labels)):
        values = {t: math.log(float(t)) if log else float(t) for t in labels}
    else:
        values = {t: float(i) for i, t in enumerate(dict.fromkeys(labels))}
    low, high = min(values.values(), default=0.0), max(values.values(), default=1.0)
    return {t: (v - low) / (high - low) if high > low else 0.5 for t, v in values.items()}


def _ends(places: dict[str, float]) -> tuple[str, str]:
    by_height = sorted(places, key=lambda t: places[t])
    shown = [number(float(t)) if _is_number(t) else t for t in (by_height[0], by_height[-1])]
    return shown[0], shown[1]


def importance(sweep: Sweep) -> dict[str, float]:
    """Axis -> share of the metric's variance that it explains (fANOVA); empty for few trials."""
    if sweep.space.search != "optuna":
        return {}
    study = optuna.create_study(direction="maximize")
    for _, what, outcome in sweep.trials:
        if outcome and outcome.state == "finished" and (values := objective_values(sweep.space, outcome)):
            distributions = {name: distribution(sweep.space.axes[name]) for name in what["values"]}
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    params=what["values"],
                    distributions=distributions,
                    value=values[0],
                )
            )
    if len(study.trials) < LEAST:
        return {}
    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    except (ValueError, RuntimeError):  # all trials alike
        return {}
    return dict(found)


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False
