"""One search for each of the five methods, and which signal tells early how a trial will end.

`python pipelines/benchmark.py searches data=FOLDER [methods=[ressl]] [trials=20] [out=FILE.json] [sweeps=FOLDER]`: the
axes of `open_METHOD` (temperatures or loss weights, learning rate, batch size) over the row of that method in
`cifar10_cpu`, by Optuna's TPE, the paper's setting first. No trial is pruned, so that every curve is known to its end;
what pruning by each signal would have saved is told from the curves by Ray's own scheduler (`_replays`).

Trials are judged by training images that none of them sees; the best one and the paper's setting are then trained anew
with other seeds and judged by the test images. The same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from benchmarks import _kept
from benchmarks._asked import asked_for
from benchmarks._curves import Curve, read_curve
from benchmarks._replays import replayed
from benchmarks._searched_page import page
from benchmarks._signals import agreements, importances

from raysurl import streams
from raysurl.errors import InputError
from raysurl.recipe import load_recipe
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.axis import Axis, labels_of, settings_of, text
from raysurl.sweep.cells import cell_of, trial_of
from raysurl.sweep.plan import SweepPlan, SweepRequest, make_plan
from raysurl.sweep.running import run
from raysurl.sweep.space import Space, read_space
from raysurl.sweep.trial import FINAL, Outcome

METHODS = ("ressl", "rcl", "superand", "mvmr", "genurl")
FILE = _kept.FOLDER / "searches.json"
TRAINED, CHOSEN_BY = 4000, 2000  # images, both of the training set
METRIC = "eval/knn_top1"
SEEDS = (1, 2, 3)  # of the best and the paper's setting; trials have 0
SMALL = {"views.size": 16, "eval.every_epochs": 1, "eval.protocols": ["knn"], "eval.features": "backbone",
         "eval.knn_k": [200, 20], "eval.baselines": False, "data.limit": None}  # fmt: skip
OF_METHOD = {"ressl": {"method.queue_size": 2048}, "rcl": {"method.queue_size": 2048}}


@dataclass(frozen=True)
class Images:
    """Three Parquet files: what is trained on, what trials are judged by, and the test images."""

    train: Path
    chosen_by: Path
    test: Path


def main(arguments: Sequence[str]) -> None:
    """`searches data=FOLDER [methods=[…]] [trials=20] [out=FILE.json] [sweeps=FOLDER]`."""
    defaults = {
        "data": None,
        "methods": list(METHODS),
        "trials": 20,
        "out": FILE,
        "sweeps": "sweeps/searches",
    }
    given = asked_for(arguments, defaults)
    if not given["data"]:
        raise InputError("name the folder that holds train.parquet and test.parquet: data=FOLDER")
    if unknown := [name for name in given["methods"] if name not in METHODS]:
        raise InputError(f"methods={unknown[0]} is none; choose of {', '.join(METHODS)}")
    root = Path(given["sweeps"])
    images = divided(Path(given["data"]), root)
    for method in given["methods"]:
        row = searched(method, images, root, int(given["trials"]))
        rows = _kept.keep(Path(given["out"]), method, row, "cpu", page)
        print(page(rows))


def divided(folder: Path, into: Path) -> Images:
    """A seeded choice of the training images, in two files."""
    found = Images(into / "train.parquet", into / "chosen_by.parquet", folder / "test.parquet")
    if not found.chosen_by.is_file():
        into.mkdir(parents=True, exist_ok=True)
        table = pq.read_table(folder / "train.parquet")
        order = streams.numpy_stream(0, "searches").permutation(len(table))
        pq.write_table(table.take(order[:TRAINED]), found.train)
        pq.write_table(table.take(order[TRAINED : TRAINED + CHOSEN_BY]), found.chosen_by)
    return found


def searched(method: str, images: Images, root: Path, trials: int) -> dict[str, Any]:
    """The search of a method and what is made of it, as it is kept."""
    space = search_space(method, images)
    plan = make_plan(SweepRequest(space=space, scale="full", trials=trials))
    papers = papers_values(method, space)
    where = root / method
    begin_with(plan, where, papers)
    go(plan, where)
    found = list(curves(where))
    best = max((c for c in found if c.state == "finished"), key=lambda c: c.final)
    again = make_plan(SweepRequest(space=checked_space(space, images, best.values, papers), scale="full"))
    go(again, root / f"{method}-again")
    return {
        "trials": [curve.kept() for curve in found],
        "paper": papers,
        "best": best.values,
        "again": scores(root / f"{method}-again"),
        "importance": importances(space, found),
        "agreement": agreements(found),
        "replays": replayed(found),
        "epochs": max(curve.epochs for curve in found),
    }


def go(plan: SweepPlan, where: Path) -> None:
    share = {"cpus": None, "gpus": None, "max_concurrent": None}
    run(plan, where, "the same command", resources=share, max_hours=None)


def search_space(method: str, images: Images) -> Space:
    """The axes of `open_METHOD`, over the method's row in `cifar10_cpu`, on these images."""
    rows, axes = read_space("cifar10_cpu"), read_space(f"open_{method}").axes
    row = dict(settings_of("row", rows.axes["row"], method))
    recipe = row.pop("recipe")
    data = {"data.path": str(images.train.resolve()), "data.eval_path": str(images.chosen_by.resolve())}
    fixed = {**rows.fixed, **row, **SMALL, **OF_METHOD.get(method, {}), **data}
    return Space(
        name=f"search_{method}",
        title=f"{method}: search on {TRAINED:,} images of CIFAR-10 at 16 px",
        search="optuna",
        recipe=recipe,
        fixed={key: value for key, value in fixed.items() if key not in axes},
        axes=axes,
        objectives={METRIC: "max"},
        seeds=(0,),
    )


def papers_values(method: str, space: Space) -> dict[str, Any]:
    """What the method's recipe for CIFAR-10 has on each axis, as a search samples it."""
    recipe = load_recipe([f"recipe={space.recipe}"])
    found = {}
    for name, axis in space.axes.items():
        value: Any = recipe
        for part in name.split("."):
            value = getattr(value, part)
        found[name] = value if axis.range else text(value)
        inside = axis.range[0] <= value <= axis.range[1] if axis.range else found[name] in labels_of(axis)
        if not inside:
            raise InputError(f"the recipe of {method} has {name}={value}, which is outside of open_{method}")
    return found


def begin_with(plan: SweepPlan, where: Path, values: Mapping[str, Any]) -> None:
    """Let the search begin with these values: it takes up first what a start has begun and not ended."""
    with sweep_directory.claim(where, plan):
        if not list(sweep_directory.outcomes(where)):
            cell = cell_of(plan.space, values)
            trial = trial_of(cell, plan.recipe_of(cell, plan.space.seeds[0]))
            sweep_directory.remember(where, trial, values)


def curves(where: Path) -> Iterator[Curve]:
    """Of every trial that has ended, in the order in which they began."""
    for name, what, outcome in sweep_directory.outcomes(where):
        if outcome and outcome.state in FINAL:
            yield read_curve(where / "trials" / name, what["values"], outcome, METRIC)


def checked_space(space: Space, images: Images, best: Mapping[str, Any], papers: Mapping[str, Any]) -> Space:
    """Both settings with other seeds, judged by the test images."""
    fixed = {**space.fixed, "data.eval_path": str(images.test.resolve()), "eval.every_epochs": 0}
    rows = {
        name: dict(cell_of(space, values).settings) for name, values in (("best", best), ("paper", papers))
    }
    return space.model_copy(
        update={
            "name": f"{space.name}_again", "search": "grid", "fixed": fixed, "seeds": SEEDS,
            "axes": {"setting": Axis(grid=rows)},
        }
    )  # fmt: skip


def scores(where: Path) -> dict[str, list[float]]:
    """Setting -> kNN of its seeds, in their order; of a trial that collapsed, what it had then."""
    found: dict[str, dict[int, Outcome]] = {}
    for _, what, outcome in sweep_directory.outcomes(where):
        if outcome and METRIC in outcome.metrics:
            found.setdefault(what["labels"]["setting"], {})[what["seed"]] = outcome
    return {
        name: [of_seed[seed].metrics[METRIC] for seed in sorted(of_seed)] for name, of_seed in found.items()
    }
