"""What a person reads on the terminal when a run or an evaluation is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

BASELINES = ("untrained", "pixels")


def show_run(run_dir: Path) -> None:
    """Headline numbers, what they mean, and where the report is."""
    results = json.loads((run_dir / "results.json").read_text())
    speed = f"{results['images_per_s']:.0f} images/s" if results["images_per_s"] else ""
    show_metrics(results["metrics"], f"{run_dir.name}: {results['seconds']:.0f} s, {speed}")
    console = Console()
    if rule := results.get("rule"):
        console.print(f"rule: {rule}", highlight=False)
    for sentence in results["health"]:
        console.print(sentence, style="yellow", highlight=False)
    if results["skipped"]:
        console.print(f"{len(results['skipped'])} unreadable samples were left out; results.json names them")
    console.print(f"report: {run_dir / 'report.html'}", soft_wrap=True, highlight=False)


def show_metrics(metrics: Mapping[str, float], title: str) -> None:
    """A row per metric, the same metric of the baselines beside it."""
    table = Table(title=title)
    for column in ("metric", "trained", "untrained", "raw pixels"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in sorted(metrics):
        group, _, rest = name.partition("/")
        if not rest.startswith(tuple(f"{b}_" for b in BASELINES)):
            values = [metrics[name], *(metrics.get(f"{group}/{b}_{rest}") for b in BASELINES)]
            table.add_row(name, *("" if v is None else f"{v:.3f}" for v in values))
    Console().print(table)
