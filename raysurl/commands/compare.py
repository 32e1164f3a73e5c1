"""Comparison tables: every row of a YAML file trained once per seed, and the mean and spread of what came out.

A file has `seeds`, `common` (recipe keys for all rows), `rows` (name -> recipe keys) and, unless they are those of
classification by kNN and regression, `columns` (heading -> metric without `eval/`). What is finished is never
run again and what was interrupted goes on, so a command may be repeated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from rich.progress import track

from raysurl.errors import InputError
from raysurl.recipe import load_recipe, parse_override

OWN = ("comparison", "output", "jobs")
COLUMNS = {"kNN 200": "knn_top1", "kNN 20": "knn20_top1", "linear (L-BFGS)": "lbfgs_top1"}


def compare(arguments: list[str], pretrain: Path, results: Path) -> Path:
    """Fill the table that `comparison=` names, `jobs` runs at a time, and write its summary into `results`.

    Every run is `pretrain` (the script) in a process of its own. Raises InputError before any starts.
    """
    given = dict(parse_override(a) for a in arguments if a.partition("=")[0] in OWN)
    extra = [a for a in arguments if a.partition("=")[0] not in OWN]
    for key in OWN[:2]:
        if key not in given:
            raise InputError(f"a comparison needs {key}=")
    path, output = Path(str(given["comparison"])), Path(str(given["output"]))
    if not path.is_file():
        raise InputError(f"comparison={path} is not a file")
    table: dict[str, Any] = yaml.safe_load(path.read_text())
    runs = {
        output / f"{row}-{seed}": settings({**table["common"], **changes, "seed": seed}) + extra
        for seed in table["seeds"]
        for row, changes in table["rows"].items()
    }
    for arguments_of_run in runs.values():
        load_recipe(arguments_of_run)  # every mistake is found before anything starts
    todo = [where for where in runs if not (where / "results.json").is_file()]
    jobs = int(given.get("jobs", 2))
    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        started = [pool.submit(train, pretrain, where, runs[where]) for where in todo if jobs]
        for run in track(started, "runs"):
            run.result()
    record = {
        "command": " ".join(
            ["python pipelines/compare.py", *(a for a in arguments if not a.startswith("jobs="))]
        ),
        "columns": table.get("columns", COLUMNS),
        "rows": {row: summary(output, row, table["seeds"]) for row in table["rows"]},
    }
    results.mkdir(parents=True, exist_ok=True)
    target = results / f"{path.stem}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    return target


def settings(values: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def train(pretrain: Path, where: Path, arguments: list[str]) -> None:
    """One run, its output in the log beside its run directory; one that fails is missing from the summary."""
    where.parent.mkdir(parents=True, exist_ok=True)
    own = ["resume=true"] if (where / "recipe.yaml").is_file() else arguments
    command = [sys.executable, str(pretrain), *own, f"output={where}"]
    with Path(f"{where}.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, check=False)


def summary(output: Path, row: str, seeds: list[int]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds that are there, and where they were measured."""
    files = [output / f"{row}-{seed}" / "results.json" for seed in seeds]
    found = [json.loads(file.read_text()) for file in files if file.is_file()]
    names = sorted({name for result in found for name in result["metrics"]})
    values = {name: [r["metrics"][name] for r in found if name in r["metrics"]] for name in names}
    return {
        "seeds": len(found),
        "metrics": {n: [mean(v), stdev(v) if len(v) > 1 else None, len(v)] for n, v in values.items()},
        "seconds_per_epoch": mean(r["num_samples"] / r["images_per_s"] for r in found) if found else None,
        "measured": sorted({f"{r['hardware']}, {r['threads']} thread(s), `{r['commit']}`" for r in found}),
        "verdicts": sorted({sentence for r in found for sentence in r["health"]}),
    }
