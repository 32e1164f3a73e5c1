"""The clusters of a run: their number, sizes and fit to the labels over time, and images of some of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from raysurl.report import page
from raysurl.report.charts import Series, line_chart, number
from raysurl.report.figures import Arrays, load
from raysurl.report.plotted import figure, words
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
MOST_NODES, FEWER = 40, 12  # clusters of the coarsest level in the tree, and below each of them
TIGHT = {"l": 0, "r": 0, "t": 4, "b": 0}
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


def picture(run: StoredRun, arrays: Arrays) -> str:
    """The tree of the clusters of the map's points, each as large as its share, coloured by its commonest class."""
    clusters, labels = arrays.get("clusters"), arrays.get("labels")
    if (
        clusters is None
        or labels is None
        or clusters.ndim != 2
        or clusters.dtype.kind != "i"
        or clusters.shape[1:] != labels.shape
    ):
        return ""
    known = clusters.min(axis=0, initial=0) >= 0
    clusters, labels = clusters[::-1, known], labels[known]
    nodes: dict[str, tuple[str, str, int, float]] = {}
    _branch(run, nodes, "", clusters, labels, MOST_NODES)
    if not nodes:
        return ""
    names, parents, sizes, shares = zip(*nodes.values(), strict=True)
    colours = shares if any(map(math.isfinite, shares)) else sizes
    trace = {
        "type": "treemap",
        "branchvalues": "total",
        "ids": list(nodes),
        "labels": names,
        "parents": parents,
        "values": sizes,
        "customdata": [f"{share:.0%}" if math.isfinite(share) else "" for share in shares],
        "hovertemplate": "%{label}<br>%{value} images %{customdata}<extra></extra>",
        "marker": {"colors": colours, "colorscale": [[0, "var(--grid)"], [1, "var(--s1)"]], "pad": TIGHT},
        "tiling": {"pad": 1},
        "maxdepth": 3,
    }
    note = "of the map's training images; the colour is the share of the commonest class; click to go down"
    return figure("Cluster tree", [trace], {"margin": TIGHT}, note=note, height=420, kind="large")


def _branch(
    run: StoredRun,
    nodes: dict[str, tuple[str, str, int, float]],
    parent: str,
    clusters: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    room: int,
) -> None:
    """Adds the largest clusters of the first row (n,) of `clusters`, each with its own below it."""
    if not len(clusters) or not clusters.shape[1]:
        return
    ids, sizes = np.unique(clusters[0], return_counts=True)
    for i in np.argsort(-sizes, kind="stable")[:room].tolist():
        of = clusters[0] == ids[i]
        own, called = f"{parent}/{ids[i]}", f"cluster {ids[i]}"
        classes, counts = np.unique(labels[of & (labels >= 0)], return_counts=True)
        share = float(counts.max() / counts.sum()) if len(counts) else math.nan
        if len(counts):
            called = run.class_name(int(classes[counts.argmax()]))
        nodes[own] = words(called), parent, int(sizes[i]), share
        _branch(run, nodes, own, clusters[1:, of], labels[of], FEWER)


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
