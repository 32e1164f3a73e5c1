"""The README's results: a row per kept run, and the comparison tables."""

from __future__ import annotations

import json
from pathlib import Path

from raysurl.errors import InputError
from raysurl.report.recipe import command
from raysurl.report.run import read_run

COLUMNS = {"kNN 200": "knn_top1", "kNN 20": "knn20_top1", "linear (L-BFGS)": "lbfgs_top1"}
SHOWN = ("knn_top1", "knn20_top1", "linear_top1", "lbfgs_top1")


def add(run_dir: Path, name: str, results: Path) -> None:
    """Keep a finished run's results.json, with the command that repeats it, as results/NAME.json."""
    if not (run_dir / "results.json").is_file():
        raise InputError(f"add={run_dir} has no results.json: it is not a finished run")
    record = {"command": command(read_run(run_dir)), **json.loads((run_dir / "results.json").read_text())}
    results.mkdir(exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def table(results: Path) -> str:
    """Trained / untrained / raw pixels for each metric, then what the run was."""
    rows = [
        "| run | kNN 200 | kNN 20 | linear (SGD) | linear (L-BFGS) | RankMe | images/s | time | hardware, commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    commands = []
    for path in sorted(results.glob("*.json")):
        r = json.loads(path.read_text())
        if "metrics" not in r:
            continue
        m = r["metrics"]
        cells = [_cell(m, name) for name in SHOWN]
        what = f"{r['hardware']}, {r['world_size']} × {r['threads']} thread(s), `{r['commit']}`"
        speed, minutes = f"{r['images_per_s']:.0f}", f"{r['seconds'] / 60:.1f} min"
        rows.append(
            f"| {path.stem} | {' | '.join(cells)} | {m['health/rankme']:.0f} | {speed} | {minutes} | {what} |"
        )
        commands.append(f"{path.stem}: {r['command']}")
    comparisons = [comparison(p) for p in sorted((results / "comparisons").glob("*.json"))]
    sweeps = [line for p in sorted((results / "sweeps").glob("*.md")) for line in sweep(p)]
    benchmarks = [benchmark(p) for p in sorted((results / "benchmarks").glob("*.md"))]
    return "\n".join([*rows, "", "```", *commands, "```", "", *comparisons, *sweeps, "", *benchmarks, ""])


def comparison(path: Path) -> str:
    """Mean ± standard deviation over seeds for each row of a table that pipelines/compare.py has filled."""
    record = json.loads(path.read_text())
    columns = record.get("columns", COLUMNS)
    heads = ["method", "seeds", *columns, "RankMe", "s/epoch"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    references: dict[str, str] = {}
    for name, row in record["rows"].items():
        metrics = row["metrics"]
        for prefix in ("untrained", "pixels"):
            if any(f"eval/{prefix}_{column}" in metrics for column in columns.values()):
                references[prefix] = f"| {prefix} | {_spread_row(metrics, f'eval/{prefix}_', columns)} | | |"
        seconds = "–" if row["seconds_per_epoch"] is None else f"{row['seconds_per_epoch']:.2g}"
        rank = _spread(metrics.get("health/rankme"))
        rows.append(f"| {name} | {_spread_row(metrics, 'eval/', columns)} | {rank} | {seconds} |")
    measured = sorted({where for row in record["rows"].values() for where in row["measured"]})
    note = [
        f"Mean ± standard deviation over seeds. Measured on {'; '.join(measured)}.",
        "",
        "```",
        record["command"],
        "```",
        "",
    ]
    return "\n".join([f"**{path.stem}**", "", *rows, *references.values(), "", *note])


def sweep(path: Path) -> list[str]:
    """A line of README on a kept table of pipelines/report.py: its title, where it is, and what its sentences say."""
    lines = path.read_text().splitlines()
    said = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    agreement = next((s for s in said if "Spearman" in s), "")
    return [f"- [{lines[0].removeprefix('# ')}](results/sweeps/{path.name}): {lines[2].rstrip()} {agreement}"]


def benchmark(path: Path) -> str:
    """A line of README on a kept page of pipelines/benchmark.py: its title, where it is, and its quoted finding."""
    lines = path.read_text().splitlines()
    said = " ".join(line.removeprefix("> ") for line in lines if line.startswith("> "))
    return f"- [{lines[0].removeprefix('# ')}](results/benchmarks/{path.name}): {said}"


def _spread_row(metrics: dict[str, list[float]], prefix: str, columns: dict[str, str]) -> str:
    values = [metrics.get(f"{prefix}{name}") for name in columns.values()]
    seeds = max((value[2] for value in values if value), default=0)
    return " | ".join([str(seeds), *(_spread(value) for value in values)])


def _spread(value: list[float] | None) -> str:
    if value is None:
        return "–"
    mean, deviation, _ = value
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def _cell(metrics: dict[str, float], name: str) -> str:
    values = [metrics.get(f"eval/{prefix}{name}") for prefix in ("", "untrained_", "pixels_")]
    first, *others = ["–" if v is None else f"{v:.1f}" for v in values]
    return " / ".join([f"**{first}**", *(v for v in others)])
