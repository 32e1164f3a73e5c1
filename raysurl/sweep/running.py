"""Running the trials of a sweep that have not ended, and listing them."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from raysurl import stopping
from raysurl.errors import RunError
from raysurl.recipe import Recipe
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.directory import known, outcomes, remaining, remember
from raysurl.sweep.display import Display
from raysurl.sweep.paper import paper_numbers
from raysurl.sweep.plan import SweepPlan
from raysurl.sweep.search import Grid, OpenSearch, Search
from raysurl.sweep.space import INACTIVE
from raysurl.sweep.trial import FINAL

SHARE, RUNNER = "raysurl.scale.share", "raysurl.scale.tune"  # Ray is imported only when trials are run
COLUMNS = ("method", "encoder", "data", "samples", "epochs", "batch")  # of each cell, where cells are listed
WIDE = 240  # characters


def run(
    plan: SweepPlan, directory: Path, again: str, *, resources: dict[str, Any], max_hours: float | None
) -> None:
    """Run what has not ended yet; the same command, `again`, goes on where a killed one stopped."""
    share, tune = (importlib.import_module(name) for name in (SHARE, RUNNER))
    placed = share.check(plan, share.Resources(**resources))
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
                    max_hours=max_hours, started=display.started, ended=display.ended,
                )  # fmt: skip
        except stopping.StoppedError as stop:
            stop.how = f"what has ended is kept and what ran is saved, continue with: {again}"
            raise


def check_any_finished(plan: SweepPlan, directory: Path) -> None:
    """Raises RunError where no trial of the sweep has come to a result."""
    found = [outcome for _, _, outcome in outcomes(directory) if outcome]
    if any(outcome.state == "finished" for outcome in found):
        return
    states = Counter(outcome.state for outcome in found)
    said = ", ".join(f"{count} {state}" for state, count in states.items()) or "none has ended"
    first = next((f"; the first: {o.reason}" for o in found if o.reason), "")
    raise RunError(f"no trial of {plan.space.title} finished ({said}) in {directory}{first}")


def not_begun(plan: SweepPlan, directory: Path) -> str:
    """A sentence on the trials of a grid that its time did not reach; "" where it reached all."""
    left = len(remaining(directory, plan)) if plan.space.search == "grid" else 0
    return f"{left} of {plan.total} trials have not ended; the same command goes on with them" if left else ""


def search_of(plan: SweepPlan, directory: Path) -> tuple[Search, int]:
    """What names the trials, and how many of those that are asked for have ended before."""
    if plan.space.search == "grid":
        left = remaining(directory, plan)
        return Grid(left), len(plan.trials) - len(left)
    before = known(directory)
    search = OpenSearch(plan, before, lambda trial, values: remember(directory, trial, values))
    return search, sum(k.outcome is not None for k in before)


# -------------------------------------------------------------------- --print


def show_plan(plan: SweepPlan) -> None:
    """All trials, what is not run and why; starts nothing."""
    # a pipe has no width: lines stay whole there
    space, console = plan.space, Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(f"{space.title} ({plan.request.scale})", highlight=False)
    if standing := space.stands_in(plan.request.scale):
        console.print(f"stand-ins: {standing}", markup=False, highlight=False)
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
    of_id = {trial.id: trial for trial in plan.trials}
    for key, trial in ((key, of_id[name]) for key, names in plan.ids.items() for name in names):
        value = paper.get(key)
        labels = [label if label != INACTIVE else "" for label in key]
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
