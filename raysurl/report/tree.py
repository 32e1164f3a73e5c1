"""The clusters of a run: their number, sizes and fit to the labels over time, and images of some of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from raysurl.report import page
from raysurl.report.charts import Series, line_chart, number
from raysurl.report.figures import Arrays, load
from raysurl.report.run import StoredRun

SIGNAL = re.compile(r"health/level(\d+)_(\w+)")
COLUMNS = {
    "clusters": "clusters",
    "children": "children of each",
    "largest_share": "largest cluster",
    "entropy": "evenness of sizes",
    "nmi": "NMI",
    "ari": "ARI",
    "purity": "purity",
}
PERCENT = ("largest_share", "entropy", "churn", "purity")
CHARTS = {  # signal -> title and note
    "clusters": ("Clusters", "their number"),
    "largest_share": ("Largest cluster", "share of all samples in it"),
    "entropy": ("Evenness of sizes", "entropy of the sizes; 100 % = all alike"),
    "churn": ("Churn", "samples whose cluster changed since the last look"),
    "nmi": ("NMI with the labels", "0 = unrelated, 1 = the same; training sees no labels"),
    "purity": ("Purity", "samples of their cluster's commonest class"),
}
NOTE = "Level 1 is the sample itself; a level groups the clusters of the level below it."
CHOSEN = {"largest": "the largest", "median": "of median size", "random": "at random"}


def numbers(run: StoredRun) -> str:
    """A table of the last signals, a row for each level."""
    rows = []
    for level in levels_of(run.final):
        found = {s: run.final[name] for s in COLUMNS if (name := f"health/level{level}_{s}") in run.final}
        cells = [
            f"{v:.1%}" if s in PERCENT else number(round(v, 1 if s == "children" else 3))
            for s, v in found.items()
        ]
        rows.append((f"level {level}", *cells))
        head = ["", *(COLUMNS[s] for s in found)]
    return page.table(head, rows) if rows else ""


def levels_of(names: Iterable[str]) -> list[int]:
    return sorted({int(m[1]) for name in names if (m := SIGNAL.fullmatch(name))})


def charts(run: StoredRun) -> str:
    """A chart for each signal, a line for each level."""
    levels = levels_of(run.names(run.evaluations))
    drawn = ""
    for signal, (title, note) in CHARTS.items():
        scale, unit = (100, " %") if signal in PERCENT else (1, "")
        series = []
        for level in levels:
            points = run.points(run.evaluations, f"health/level{level}_{signal}")
            series.append(Series.of(f"level {level}", [(x, scale * y) for x, y in points]))
        drawn += line_chart(title, series, x_name=run.x_name, unit=unit, note=note)
    return f'<div class="charts three">{drawn}</div>' if drawn else ""


def sheets(run: StoredRun) -> str:
    """Rows of images: some clusters of the coarsest level, below each its largest children, level by level."""
    arrays = load(run.directory / "samples" / "clusters.npz")
    names = ("images", "labels", "line", "chosen", "level", "size", "children", "common", "share")
    if not set(names) <= arrays.keys() or arrays["images"].ndim != 4 or not len(arrays["level"]):
        return ""
    top = int(arrays["level"].max())
    rows = "".join(_line(run, arrays, i, top) for i in range(len(arrays["level"])))
    note = "Each block: a cluster of the coarsest level, then its largest children; ten images of each at random."
    if (arrays["labels"] >= 0).any():
        note += " A solid green frame: the commonest class of the row; a dashed red one: another."
    return (
        f'<p class="soft">{note}</p><div class="card scroll"><table class="images sheet">{rows}</table></div>'
    )


def _line(run: StoredRun, arrays: Arrays, i: int, top: int) -> str:
    level, size, children = (int(arrays[name][i]) for name in ("level", "size", "children"))
    common, share = int(arrays["common"][i]), float(arrays["share"][i])
    chosen = CHOSEN.get(str(arrays["chosen"][i]), "")
    words = [f"{size:,} image{'s' * (size != 1)}"]
    if level > 2:
        words.append(f"{children:,} cluster{'s' * (children != 1)} within")
    if common >= 0:
        words.append(f"{run.class_name(common)}: {share:.0%}")
    title = f"Level {level}{', ' + chosen if chosen else ''}"
    cells = "".join(_cell(run, arrays, j, common) for j in np.flatnonzero(arrays["line"] == i).tolist())
    kind = "top" if level == top else "under"
    return (
        f'<tr class="{kind}"><th style="padding-left:{18 * (top - level)}px"><b>{escape(title)}</b>'
        f"<small>{escape(' · '.join(words))}</small></th>{cells}</tr>"
    )


def _cell(run: StoredRun, arrays: Arrays, j: int, common: int) -> str:
    label: Any = int(arrays["labels"][j])
    kind = "" if label < 0 or common < 0 else "good" if label == common else "bad"
    words = run.class_name(label) if label >= 0 else "a member"
    return f'<td class="{kind}">{page.image(arrays["images"][j], words)}</td>'
