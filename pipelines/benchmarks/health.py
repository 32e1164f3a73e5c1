"""What the doctor (raysurl.health) says of healthy runs of every method, and of the same with a fault planted.

Each method that needs no teacher trains by its recipe for CIFAR-10, with the small network on some of the images: as it
is, where nothing should be found but whether it gains, which so short a run cannot promise; at a hundred times its
learning rate; and where it averages a teacher with one that never moves. `found` are the kinds of findings at the end.
`times=0.1` asks of a run that steps too far whether a tenth of the rate is better.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks._asked import asked_for
from benchmarks._kept import FOLDER, Rows, keep, where

from raysurl import build
from raysurl.errors import InputError, RunError
from raysurl.method import available
from raysurl.nets.ema import MomentumTeacher
from raysurl.recipe import Recipe, load_recipe
from raysurl.run import pretrain
from raysurl.train.gain import MARK

FILE = FOLDER / "health.json"
SETTINGS = (
    "data.name=parquet", "views.size=24", "encoder.name=convnet", "encoder.small_stem=false", "encoder.sobel=false",
    "train.batch_size=128", "train.schedule.warmup_epochs=2", "eval.every_epochs=0", "eval.protocols=[knn]",
    "eval.baselines=false", "runtime=local", "log.tensorboard=false", "checkpoint.every_epochs=0",
)  # fmt: skip
SMALLER = {
    "queue_size": 1024,
    "hidden": 512,
    "dim": 128,
    "projector": [512, 512, 512],
    "predictor_hidden": 512,
}
SHOWN = ("health/std", "health/rankme", "health/update_share", "health/teacher_motion", "health/queue_lag")


def main(arguments: list[str]) -> None:
    """`health data=FOLDER [methods=[ressl, …]] [samples=2000] [epochs=15] [times=100] [threads=1] [seed=0]
    [out=FILE.json]`; data: a folder with train.parquet and test.parquet of CIFAR-10. What is in the file stays."""
    given = asked_for(
        arguments,
        {"data": None, "methods": None, "samples": 2000, "epochs": 15, "times": 100, "threads": 1, "seed": 0,
         "out": FILE},
    )  # fmt: skip
    if not given["data"]:
        raise InputError("name the folder that holds train.parquet and test.parquet: data=FOLDER")
    torch.set_num_threads(int(given["threads"]))
    for name in given["methods"] or available():
        recipe = recipe_of(name, given)
        if recipe is None:
            continue
        faults = {"healthy": recipe, f"rate × {given['times']}": steep(recipe, float(given["times"]))}
        method = build.method_of(recipe, num_samples=int(given["samples"]), labels=None)
        if any(isinstance(module, MomentumTeacher) for module in method.modules()):
            faults["teacher that stays"] = changed(recipe, "method", momentum=1.0)
        for fault, what in faults.items():
            row = examined(what) | {"method": name, "fault": fault}
            row |= {key: given[key] for key in ("samples", "epochs", "seed")}
            keep(Path(given["out"]), f"{name}, {fault}, seed {given['seed']}", row, "cpu", page)
            print(f"{name}, {fault}: {row['found'] or 'nothing'}", flush=True)


def recipe_of(name: str, given: Mapping[str, Any]) -> Recipe | None:
    """None for a method that learns from a teacher, or has no recipe for these data."""
    try:
        fields = type(load_recipe([f"recipe={name}/cifar10"]).method).model_fields
    except InputError:
        return None
    smaller = [f"method.{key}={value}" for key, value in SMALLER.items() if key in fields]
    data = [f"data.path={given['data']}/train.parquet", f"data.eval_path={given['data']}/test.parquet"]
    numbers = [
        f"data.limit={given['samples']}", f"train.epochs={given['epochs']}", f"seed={given['seed']}",
        f"scale.threads={given['threads']}",
    ]  # fmt: skip
    recipe = load_recipe([f"recipe={name}/cifar10", *SETTINGS, *smaller, *data, *numbers])
    return recipe if recipe.method.learns_from() == "no" else None


def steep(recipe: Recipe, times: float) -> Recipe:
    optimizer = recipe.train.optimizer
    return changed(recipe, "train", optimizer=optimizer.model_copy(update={"lr": times * optimizer.lr}))


def changed(recipe: Recipe, section: str, **changes: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=changes)})


def examined(recipe: Recipe) -> dict[str, Any]:
    """Kinds of findings, the sentences, and some signals of a run."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = pretrain(recipe.model_copy(update={"output": f"{folder}/run"}))
            results = json.loads((run / "results.json").read_text())
        except (RunError, InputError) as error:  # the latter of features that are not finite
            results = {"health": [f"diverged: {error}"], "metrics": {}, "signals": {}}
    said = [one for one in results["health"] if not one.startswith(MARK)]
    signals = {**results["metrics"], **results["signals"]}
    return {
        "found": [one.partition(":")[0] for one in said],
        "said": said,
        "signals": {name: round(signals[name], 5) for name in SHOWN if name in signals},
        "knn": results["metrics"].get("eval/knn_top1"),
        "seconds": round(time.perf_counter() - began, 1),
    }


def page(rows: Rows) -> str:
    healthy = {row["method"]: row for row in rows.values() if row["fault"] == "healthy"}
    calmer = [row for row in rows.values() if row["fault"].startswith("rate × 0.")]
    sick = [row for row in rows.values() if row["fault"] != "healthy" and row not in calmer]
    silent = sum(not row["found"] for row in healthy.values())
    noticed = sum(bool(row["found"]) for row in sick)
    tried = "".join(
        f" At {row['fault'].removeprefix('rate × ')} of its rate {row['method']} has kNN {row['knn']:.1f} for"
        f" {healthy[row['method']]['knn']:.1f} and RankMe {row['signals']['health/rankme']:.0f} for"
        f" {healthy[row['method']]['signals']['health/rankme']:.0f}."
        for row in calmer
    )
    lines = [
        "# What the doctor says", "",
        f"> Of {len(healthy)} healthy runs it is silent on {silent}; of {len(sick)} with a planted fault it notices"
        f" {noticed}.{tried}", "",
        "| method | planted | found | kNN | update share | teacher's motion | queue's lag | spread | RankMe |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows.values():
        signals = [row["signals"].get(f"health/{name}") for name in
                   ("update_share", "teacher_motion", "queue_lag", "std", "rankme")]  # fmt: skip
        numbers = ["" if value is None else f"{value:.3g}" for value in signals]
        knn = "" if row["knn"] is None else f"{row['knn']:.1f}"
        lines.append(
            f"| {row['method']} | {row['fault']} | {', '.join(row['found']) or 'nothing'} | {knn} |"
            f" {' | '.join(numbers)} |"
        )
    first = next(iter(rows.values()))
    sizes = f"samples={first['samples']} epochs={first['epochs']}"
    said = f"{first['samples']} images of CIFAR-10 at 24 px, {first['epochs']} epochs, the small network."
    command = f"`python pipelines/benchmark.py health data=FOLDER {sizes}`."
    return "\n".join([*lines, "", f"{said} {command} {where(rows)}", ""])
