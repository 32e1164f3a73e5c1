"""Kept sweeps of one axis, as tables of methods: each row with the commit that it was measured at, and its curves.

results/comparisons/NAME.json. Rows that are added again replace the old ones, and the others stay.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from raysurl import plain
from raysurl.errors import InputError
from raysurl.intervals import of_mean
from raysurl.report.charts import Series, line_chart
from raysurl.report.run import read_run
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.results import read_sweep
from raysurl.train.run_directory import write_atomic

COLUMNS = {"kNN 200": "knn_top1", "kNN 20": "knn20_top1", "linear (L-BFGS)": "lbfgs_top1"}
EPOCHS_SHOWN = 8  # of a curve, in a table


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a file that is not as this program wrote it raises, as InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{path} is not what a finished run or this command writes: {why}") from None


def add_sweep(directory: Path, name: str, results: Path) -> None:
    """Keep the rows of a sweep of one axis: mean and deviation of all metrics over the seeds that have finished."""
    found = read_sweep(directory)
    if len(found.axes) != 1 or found.space.search != "grid":
        raise InputError(
            f"add={directory}: only a table of one axis has rows to keep; it has {len(found.axes)} axes"
        )
    target = results / "comparisons" / f"{name}.json"
    record: dict[str, Any] = {"rows": {}}
    if target.is_file():
        with reading(target):
            record = plain.read_mapping(target)
    record["command"] = f"python pipelines/sweep.py space={found.space.name} data_root=FOLDER"
    shown = found.space.shown or {found.space.metric: found.space.metric}
    record["columns"] = {heading: metric.removeprefix("eval/") for heading, metric in shown.items()}
    for cell in sweep_directory.read(directory)["cells"]:
        files = [directory / "trials" / trial / "results.json" for trial in cell["ids"]]
        with reading(next((file for file in files if file.is_file()), directory)):
            there = [file for file in files if file.is_file()]
            if kept := [plain.read_mapping(file) for file in there]:
                curves = _curves([file.parent for file in there], list(shown.values()))
                record["rows"][cell["labels"][0]] = _row(kept) | ({"curves": curves} if curves else {})
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, json.dumps(record, indent=1) + "\n")


def _row(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and number of each metric of some runs, and where they were measured."""
    names = sorted({name for result in found for name in result["metrics"]})
    values = {name: [r["metrics"][name] for r in found if name in r["metrics"]] for name in names}
    paces = [r["num_samples"] / r["images_per_s"] for r in found if r["images_per_s"]]
    return {
        "seeds": len(found),
        "metrics": {n: [fmean(v), stdev(v) if len(v) > 1 else None, len(v)] for n, v in values.items()},
        "seconds_per_epoch": fmean(paces) if paces else None,
        "measured": sorted({f"{r['hardware']}, {r['threads']} thread(s), `{r['commit']}`" for r in found}),
        "rules": sorted({r["rule"] for r in found if r.get("rule")}),
        "verdicts": sorted({sentence for r in found for sentence in r["health"]}),
    }


def _curves(directories: Sequence[Path], metrics: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Metric -> epoch -> its value in each run, of runs that were evaluated while they trained; {} of others."""
    runs, found = [read_run(directory) for directory in directories], {}
    for name in metrics:
        by_epoch: dict[str, list[float]] = {}
        for run in runs:
            for x, value in run.points(run.evaluations, name):
                by_epoch.setdefault(f"{x:g}", []).append(value)
        if len(by_epoch) > 1:
            found[name] = by_epoch
    return found


def comparison(path: Path) -> str:
    """Mean ± standard deviation over seeds, with the mean's interval, for each row of a table of a kept sweep.

    Beside the first column stands the untrained encoder's, of the same quantity: a row whose kNN compares with memory
    has its own or none, all others that of the row which was run with baselines.
    """
    record = plain.read_mapping(path)
    columns = record.get("columns", COLUMNS)
    headline, first = next(iter(columns.items()))
    of_backbone = [row["metrics"] for row in record["rows"].values() if not _of_memory(row["metrics"])]
    untrained = next((m[key] for m in of_backbone if (key := f"eval/untrained_{first}") in m), None)
    heads = [
        "method",
        "seeds",
        *columns,
        *([f"untrained {headline}"] if untrained else []),
        "RankMe",
        "s/epoch",
    ]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    references: dict[str, str] = {}
    for name, row in record["rows"].items():
        metrics = row["metrics"]
        for prefix in () if _of_memory(metrics) else ("untrained", "pixels"):
            if any(f"eval/{prefix}_{column}" in metrics for column in columns.values()):
                rest = " |" * (len(heads) - 2 - len(columns))
                references[prefix] = (
                    f"| {prefix} | {_spread_row(metrics, f'eval/{prefix}_', columns)} |{rest}"
                )
        seconds = _seconds(row["seconds_per_epoch"])
        rank = _spread(metrics.get("health/rankme"))
        own = metrics.get(f"eval/untrained_{first}", None if _of_memory(metrics) else untrained)
        beside = [f"{own[0]:.1f}" if own else "–"] if untrained else []
        rows.append(
            f"| {' | '.join([name, _spread_row(metrics, 'eval/', columns), *beside, rank, seconds])} |"
        )
    measured = sorted({where for row in record["rows"].values() for where in row["measured"]})
    rules = [
        f"{name}: {'; '.join(row['rules'])}." for name, row in record["rows"].items() if row.get("rules")
    ]
    note = [
        " ".join(
            [
                "Mean ± standard deviation over seeds, and the mean's interval of 95 % (Student's t).",
                f"Measured on {'; '.join(measured)}.",
                *rules,
            ]
        ),
        "",
        "```",
        record["command"],
        "```",
        "",
    ]
    return "\n".join([f"## {path.stem}", "", *rows, *references.values(), "", *curve_table(record), *note])


def _seconds(of_epoch: float | None) -> str:
    if of_epoch is None:
        return "–"
    return f"{of_epoch:.0f}" if of_epoch >= 100 else f"{of_epoch:.2g}"  # .2g writes 104 as 1e+02


def _of_memory(metrics: dict[str, Any]) -> bool:
    """Whether kNN compares embeddings with memory, and the backbone's stands beside it under a name of its own."""
    return "eval/backbone_knn_top1" in metrics


def _spread_row(metrics: dict[str, list[float]], prefix: str, columns: dict[str, str]) -> str:
    values = [metrics.get(f"{prefix}{name}") for name in columns.values()]
    seeds = max((value[2] for value in values if value), default=0)
    return " | ".join([str(seeds), *(_spread(value) for value in values)])


def _spread(value: list[float] | None) -> str:
    if value is None:
        return "–"
    mean, deviation, count = value
    if deviation is None:
        return f"{mean:.1f}"
    low, high = of_mean(mean, deviation, int(count))
    return f"{mean:.1f} ± {deviation:.1f} ({low:.1f} to {high:.1f})"


# -------------------------------------------------------------------- while they train


def curve_table(record: Mapping[str, Any]) -> list[str]:
    """Lines of a table: of each row the headline after some epochs, mean over the seeds; none without curves."""
    rows = _curved(record)
    if not rows:
        return []
    heading = next(iter(record["columns"]))
    known = sorted({float(epoch) for curve in rows.values() for epoch in curve})
    at = sorted({known[round(i)] for i in np.geomspace(1, len(known), EPOCHS_SHOWN) - 1})
    lines = [
        f"{heading} while training, after so many epochs, mean over seeds (their chart is on the page of"
        " `raysurl ablations`):",
        "",
        f"| method | {' | '.join(f'{epoch:g}' for epoch in at)} |",
        "|---" * (len(at) + 1) + "|",
    ]
    for name, curve in rows.items():
        values = [curve.get(f"{epoch:g}") for epoch in at]
        lines.append(f"| {name} | {' | '.join(f'{fmean(v):.1f}' if v else '' for v in values)} |")
    return [*lines, "", leaders(rows), ""]


def leaders(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """One sentence: which row has the highest mean after which of the epochs that all have, and where each of its seeds
    is above every run of the others. `rows`: name -> epoch -> a value for each seed."""
    shared = sorted(set.intersection(*(set(curve) for curve in rows.values())), key=float)
    if not shared:
        return "No epoch is one after which all of them were judged."
    ahead: list[tuple[str, str, bool]] = []
    for epoch in shared:
        best = max(rows, key=lambda name: fmean(rows[name][epoch]))
        others = [value for name in rows if name != best for value in rows[name][epoch]]
        ahead.append((epoch, best, min(rows[best][epoch]) > max(others, default=-math.inf)))
    parts = []
    for best, group in itertools.groupby(ahead, key=lambda found: found[1]):
        found = list(group)
        clear = [epoch for epoch, _, clearly in found if clearly]
        which = "all" if len(clear) == len(found) else ", ".join(clear) or "none"
        span = " to ".join(dict.fromkeys([found[0][0], found[-1][0]]))
        parts.append(f"{best} after {span} (each of its seeds above every other run after {which} of these)")
    return f"Ahead: {'; '.join(parts)}."


def curve_chart(path: Path) -> str:
    """HTML of one chart, a line for each row with its deviation over seeds; "" without curves. Raises InputError."""
    with reading(path):
        record = plain.read_mapping(path)
        series = []
        for name, curve in _curved(record).items():
            points = sorted((float(epoch), values) for epoch, values in curve.items())
            spread = [stdev(values) if len(values) > 1 else math.nan for _, values in points]
            x, y = [epoch for epoch, _ in points], [fmean(values) for _, values in points]
            series.append(Series(name, np.array(x), np.array(y), spread=np.array(spread)))
        heading = next(iter(record["columns"]), "")
        note = f"{heading}, mean over seeds; bars: their standard deviation"
        return line_chart(path.stem, series, x_name="epoch", unit=" %", note=note, large=True)


def _curved(record: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """The headline's curve of each row that has one: epoch -> its value in each seed."""
    metric = f"eval/{next(iter(record.get('columns', COLUMNS).values()))}"
    found = {name: row.get("curves", {}).get(metric) for name, row in record["rows"].items()}
    return {name: curve for name, curve in found.items() if curve}
