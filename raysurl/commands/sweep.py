"""Run a sweep: a published table or an open search, from one file of search_spaces/."""

from __future__ import annotations

import importlib
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from raysurl import stopping
from raysurl.errors import InputError, RunError
from raysurl.paths import default_place, given_path, place
from raysurl.recipe import Recipe, nearest, parse_yaml, split_argument
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.directory import known, outcomes, remaining, remember
from raysurl.sweep.display import Display
from raysurl.sweep.paper import paper_numbers
from raysurl.sweep.plan import SweepPlan, SweepRequest, make_plan
from raysurl.sweep.report import write_report
from raysurl.sweep.search import Grid, OpenSearch, Search
from raysurl.sweep.space import INACTIVE, Space, labels_of, read_space
from raysurl.sweep.trial import FINAL

SHARE, RUNNER = "raysurl.scale.share", "raysurl.scale.tune"  # Ray is imported only when trials are run
SETTINGS = {
    "space": ("text", "", "a file of search_spaces/, or a YAML file"),
    "scale": ("cpu | full", "cpu", "the small version that the space describes, or the paper's size"),
    "output": ("DIR", "sweeps/SPACE-SCALE", "the sweep directory; the same command goes on there"),
    "print": ("true | false", "false", "list the trials and start nothing, as --print does"),
    "max_concurrent": ("whole number ≥ 1", "none", "trials at once; none: as many as fit"),
    "cpus": ("number ≥ 0", "none", "CPUs of each trial; none: scale.threads"),
    "gpus": ("number ≥ 0", "none", "GPUs of each trial; none: one where there is any"),
    "seeds": ("[whole number, …]", "none", "none: those of the space"),
    "trials": ("whole number ≥ 1", "none", "of an open search"),
    "max_trials": ("whole number ≥ 1", "none", "of a grid: no more than these"),
    "max_hours": ("number > 0", "none", "after which no trial is started"),
    "data_root": ("DIR", "none", "where the data of the space lie"),
    "only.AXIS": ("[label, …]", "none", "of an axis these values alone"),
}
KEYS = tuple(key for key in SETTINGS if key != "only.AXIS")
COLUMNS = ("method", "encoder", "data", "samples", "epochs", "batch")  # of each cell, where cells are listed
WIDE = 240  # characters
MAY_BE_ZERO = ("cpus", "gpus")  # of which a trial may take the one and not the other


@dataclass(frozen=True)
class Asked:
    request: SweepRequest
    output: Path
    print_only: bool
    share: dict[str, Any]
    max_hours: float | None


def main(arguments: Sequence[str]) -> None:
    """`sweep.py space=NAME [scale=cpu|full] [seeds=0,1,2] [only.AXIS=A,B] [max_concurrent=N] [key=value …] [--print]`.

    `--print` lists the trials and starts nothing; their data need not be there.
    """
    asked = read_arguments(arguments)
    if asked.print_only:
        show_plan(make_plan(asked.request, listed=True))
        return
    plan = make_plan(asked.request)
    run(plan, asked, stopping.command_line("sweep", _again(arguments, asked.output)))
    print(write_report(asked.output))
    check_any_finished(plan, asked.output)


def run(plan: SweepPlan, asked: Asked, again: str) -> None:
    """Run what has not ended yet; the same command, `again`, goes on where a killed one stopped."""
    share, tune = (importlib.import_module(name) for name in (SHARE, RUNNER))
    directory = asked.output
    placed = share.check(plan, share.Resources(**asked.share))
    with sweep_directory.claim(directory, plan):
        search, earlier = search_of(plan, directory)
        if earlier == plan.total:
            print(f"all {earlier} trials have ended already")
            return
        console = Console(file=sys.stdout)  # as it is now: Tune's own output goes to a file
        ended = [outcome for _, _, outcome in outcomes(directory) if outcome and outcome.state in FINAL]
        try:
            with Display(plan.space, plan.total, ended[:earlier], placed.concurrent, console) as display:
                tune.run(
                    plan, search, directory, placed,
                    max_hours=asked.max_hours, started=display.started, ended=display.ended,
                )  # fmt: skip
        except stopping.StoppedError as stop:
            stop.how = f"what has ended is kept and what ran is saved, continue with: {again}"
            raise


def _again(arguments: Sequence[str], output: Path) -> list[str]:
    """The same arguments, with the directory as it is."""
    return [*(a for a in arguments if not a.startswith("output=")), f"output={output}"]


def check_any_finished(plan: SweepPlan, directory: Path) -> None:
    """Raises RunError where no trial of the sweep has come to a result."""
    found = [outcome for _, _, outcome in outcomes(directory) if outcome]
    if any(outcome.state == "finished" for outcome in found):
        return
    states = Counter(outcome.state for outcome in found)
    said = ", ".join(f"{count} {state}" for state, count in states.items()) or "none has ended"
    first = next((f"; the first: {o.reason}" for o in found if o.reason), "")
    raise RunError(f"no trial of {plan.space.title} finished ({said}) in {directory}{first}")


def search_of(plan: SweepPlan, directory: Path) -> tuple[Search, int]:
    """What names the trials, and how many of those that are asked for have ended before."""
    if plan.space.search == "grid":
        left = remaining(directory, plan)
        return Grid(left), len(plan.trials) - len(left)
    before = known(directory)
    search = OpenSearch(plan, before, lambda trial, values: remember(directory, trial, values))
    return search, sum(k.outcome is not None for k in before)


# -------------------------------------------------------------------- arguments


def read_arguments(arguments: Sequence[str]) -> Asked:
    """Raises InputError, one sentence, for what is not known or not valid."""
    given = dict(split_argument(a) for a in arguments if a != "--print")
    mine = {key: given.pop(key) for key in KEYS if key in given}
    only = {key.removeprefix("only."): given.pop(key) for key in list(given) if key.startswith("only.")}
    _check_rest(given)
    if "space" not in mine:
        raise InputError("name the space: space=NAME of search_spaces/ or a YAML file")
    space = read_space(mine["space"])
    scale = mine.get("scale", "cpu" if space.cpu else "full")
    if space.search == "grid" and "trials" in mine:
        raise InputError(
            f"trials= is for an open search, and space {space.name} is a grid; use only.AXIS= or seeds="
        )
    request = SweepRequest(
        space=space,
        scale=scale,
        seeds=_seeds(mine.get("seeds")),
        trials=_number(mine, "trials", int),
        max_trials=_number(mine, "max_trials", int),
        only={axis: _labels(space, axis, v) for axis, v in only.items()},
        overrides=given,
        data_root=str(given_path("data_root", mine["data_root"])) if "data_root" in mine else None,
    )
    small = space.cpu.max_hours if space.cpu and scale == "cpu" else None
    return Asked(
        request=request,
        output=place("output", mine["output"])
        if mine.get("output")
        else default_place("sweeps") / f"{space.name}-{scale}",
        print_only="--print" in arguments or mine.get("print", "false").lower() in ("true", "1", "yes"),
        share={
            "cpus": _number(mine, "cpus", float),
            "gpus": _number(mine, "gpus", float),
            "max_concurrent": _number(mine, "max_concurrent", int),
        },
        max_hours=_number(mine, "max_hours", float) or small,
    )


def _check_rest(given: dict[str, str]) -> None:
    for key in given:
        if key in ("seed", "recipe", "runtime", "resume"):
            hint = {"seed": "seeds=0,1,2", "recipe": "the space names it"}.get(key, "a sweep sets it")
            raise InputError(f"argument {key}= is not for a sweep: {hint}")
        if "." not in key and key not in Recipe.model_fields:
            hint = nearest(key, (*KEYS, "only.AXIS", *Recipe.model_fields), "a sweep takes")
            raise InputError(f"argument {key}= is not known; {hint}")


def _seeds(given: str | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    parts = _parts(given)
    seeds = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if not seeds or len(seeds) < len(parts) or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={given} must be different whole numbers from 0 on, for example seeds=0,1,2")
    return tuple(seeds)


def _labels(space: Space, axis: str, given: str) -> tuple[str, ...]:
    """The labels that `only.AXIS=` names: one, a list, or what commas divide where that is no label itself."""
    whole = axis in space.axes and given in labels_of(space.axes[axis])
    return (given,) if whole else tuple(_parts(given))


def _parts(given: str) -> list[str]:
    """`[0, 1]` and `0,1` as a list of texts; anything else as its one member."""
    if given.startswith("[") and given.endswith("]"):
        given = given[1:-1]
    return [part.strip().strip("'\"") for part in given.split(",") if part.strip()]


def _number(mine: dict[str, str], key: str, kind: type) -> Any:
    if not mine.get(key):
        return None
    value = parse_yaml(mine[key], f"{key}={mine[key]}")
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or kind(value) != value or value < 0 or (value == 0 and key not in MAY_BE_ZERO):
        least = "0 or more" if key in MAY_BE_ZERO else "1 or more" if kind is int else "above 0"
        raise InputError(f"{key}={value} must be a {'whole' if kind is int else 'finite'} number, {least}")
    return kind(value)


# -------------------------------------------------------------------- --print


def show_plan(plan: SweepPlan) -> None:
    """All trials, what is not run and why; starts nothing."""
    # a pipe has no width: lines stay whole there
    space, console = plan.space, Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(f"{space.title} ({plan.request.scale})", highlight=False)
    if plan.request.scale == "cpu" and space.cpu:
        console.print(f"stand-ins: {space.cpu.stands_in or 'none'}", markup=False, highlight=False)
    if space.search == "optuna":
        console.print(
            f"{space.trials} trials, chosen one by one over {', '.join(space.axes)}", highlight=False
        )
        corners = Table("corner", *COLUMNS, box=None)
        for number, recipe in enumerate(plan.recipes):
            corners.add_row(str(number), *_settings(plan, recipe))
        console.print(corners)
        return
    paper = paper_numbers(plan.request.space)
    table = Table(Column("trial", no_wrap=True), *space.axes, *COLUMNS, "seed", "paper", box=None)
    for trial in plan.trials:
        value = paper.get(trial.cell.key)
        labels = [label if label != INACTIVE else "" for label in trial.cell.key]
        printed = "" if value is None else f"{'≈' if space.read_from_figure else ''}{value:g}"
        table.add_row(trial.id, *labels, *_settings(plan, trial.recipe), str(trial.seed), printed)
    console.print(table)
    for why, cells in Counter(plan.not_run.values()).items():
        console.print(f"not run, {cells} cells: {why}", markup=False, highlight=False, soft_wrap=True)
    if any(plan.samples_of(trial.recipe).startswith("(") for trial in plan.trials):
        console.print("in brackets: the data are not here, and known to be so many", highlight=False)
    console.print(
        f"{len(plan.trials)} trials of {len(plan.ids)} cells; {len(plan.not_run)} cells are not run",
        highlight=False,
    )


def _settings(plan: SweepPlan, recipe: Recipe) -> list[str]:
    """What a cell resolves to, in a few words."""
    epochs = f"{recipe.train.epochs}" + (f" × {recipe.train.rounds}" if recipe.train.rounds > 1 else "")
    return [
        recipe.method.name,
        recipe.encoder.name,
        recipe.data.name,
        plan.samples_of(recipe),
        epochs,
        str(recipe.train.batch_size),
    ]
