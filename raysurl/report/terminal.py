"""What a person reads on the terminal when a run or an evaluation is done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

THE = {"untrained": "the untrained encoder", "pixels": "raw pixels"}
BASELINES = tuple(THE)
COLUMNS = ("metric", "trained", "95 %", "untrained", "raw pixels")
KINDS = {"eval": "evaluation", "health": "health", "train": "health"}  # group of a metric -> its table


class MetricTable(NamedTuple):
    """`head` and `rows` of text; a column that no row fills is left out, but for the metric and its value."""

    kind: str
    head: list[str]
    rows: list[list[str]]


def show_run(run_dir: Path) -> None:
    """Headline numbers, what they mean, and where the report is."""
    results = json.loads((run_dir / "results.json").read_text())
    speed = f"{results['images_per_s']:.0f} images/s" if results["images_per_s"] else ""
    title = f"{run_dir.name}: {results['seconds']:.0f} s, {speed}"
    show_metrics(results["metrics"], title, results.get("intervals"), results.get("gains"))
    console = Console()
    if rule := results.get("rule"):
        console.print(f"rule: {rule}", highlight=False)
    for sentence in results["health"]:
        console.print(sentence, style="yellow", highlight=False)
    if results["skipped"]:
        console.print(f"{len(results['skipped'])} unreadable samples were left out; results.json names them")
    console.print(f"report: {run_dir / 'report.html'}", soft_wrap=True, highlight=False)


def show_metrics(
    metrics: Mapping[str, float],
    title: str,
    intervals: Mapping[str, Sequence[float]] | None = None,
    gains: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> None:
    """A row per metric with its interval, the same metric of the baselines beside it, and what is gained over them."""
    console = Console()
    console.print(title, style="italic", highlight=False)
    for found in tables(metrics, intervals or {}):
        table = Table(title=found.kind, title_justify="left")
        for column in found.head:
            table.add_column(column, justify="left" if column == "metric" else "right")
        for row in found.rows:
            table.add_row(*row)
        console.print(table)
    for said in gained(gains or {}):
        console.print(said, highlight=False, soft_wrap=True)


def tables(metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> list[MetricTable]:
    """Evaluation and health apart, a row for each metric that is no baseline's."""
    kinds: dict[str, list[list[str]]] = {}
    for group in dict.fromkeys([*KINDS, *(name.partition("/")[0] for name in sorted(metrics))]):
        names = [n for n in sorted(metrics) if n.partition("/")[0] == group and not _is_baseline(n)]
        kinds.setdefault(KINDS.get(group, group), []).extend(_cells(n, metrics, intervals) for n in names)
    found = []
    for kind, lines in kinds.items():
        filled = [i for i in range(len(COLUMNS)) if i < 2 or any(line[i] for line in lines)]
        head = [COLUMNS[i] for i in filled]
        if lines:
            found.append(MetricTable(kind, head, [[line[i] for i in filled] for line in lines]))
    return found


def _is_baseline(name: str) -> bool:
    return name.partition("/")[2].startswith(tuple(f"{b}_" for b in BASELINES))


def _cells(name: str, metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> list[str]:
    """A cell for each of COLUMNS."""
    group, _, rest = name.partition("/")
    values = [metrics[name], *(metrics.get(f"{group}/{b}_{rest}") for b in BASELINES)]
    own, *others = ["" if v is None else f"{v:.3f}" for v in values]
    return [name, own, between(intervals.get(name)), *others]


def gained(gains: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """A sentence for each metric on what is gained over the baselines."""
    return [
        f"{name}: "
        + ", ".join(
            f"{over[b][0]:+.1f} points over {THE[b]} ({between(over[b][1:])})" for b in BASELINES if b in over
        )
        for name, over in sorted(gains.items())
    ]


def between(interval: Sequence[float] | None) -> str:
    """`61.2 to 63.4`, or nothing where there is no interval."""
    return "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
