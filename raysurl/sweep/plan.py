"""What a sweep will do, known and checked before anything starts: its trials, and the cells it cannot run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raysurl import build, run
from raysurl.data.known import known_of
from raysurl.data.names import Samples, open_samples
from raysurl.errors import InputError
from raysurl.evaluate import Division
from raysurl.evaluate.elsewhere import final_names_at
from raysurl.evaluate.expected import final_names, online_names
from raysurl.recipe import Recipe, nearest
from raysurl.sweep import cells as cells_
from raysurl.sweep.axis import labels_of
from raysurl.sweep.cells import Cell, MissingDataError, Trial
from raysurl.sweep.listing import listed_recipe
from raysurl.sweep.paper import paper_numbers, paper_seconds
from raysurl.sweep.pilot import extremes
from raysurl.sweep.space import SECONDS, Space, at_scale

Splits = tuple[Samples, Samples | None]
# protocol -> what it judges a space by that names no objective: the first that is asked for
HEADLINES = {
    "linear": "eval/linear_top1", "nodes": "eval/linear_top1", "knn": "eval/knn_top1", "lbfgs": "eval/lbfgs_top1"
}  # fmt: skip


@dataclass(frozen=True)
class SweepRequest:
    """What a person asked for: a space, at a scale, with which values, seeds and recipe settings."""

    space: Space  # as published
    scale: str
    seeds: tuple[int, ...] | None = None
    trials: int | None = None
    max_trials: int | None = None
    only: Mapping[str, tuple[str, ...]] | None = None
    pilot: bool = False  # the paper's extreme cells alone
    overrides: Mapping[str, str] | None = None  # as they were typed
    data_root: str | None = None


@dataclass(frozen=True)
class SweepPlan:
    """`space`: at its scale. `trials`: of a grid, each once; none for an open search. `ids`: cell labels -> its trials.
    `not_run`: cell labels -> why. `recipes`: of all trials; of an open search, those of its corners."""

    request: SweepRequest
    space: Space
    recipes: tuple[Recipe, ...]
    trials: tuple[Trial, ...]
    ids: Mapping[tuple[str, ...], tuple[str, ...]]
    not_run: Mapping[tuple[str, ...], str]
    samples: Mapping[str, Splits]  # by `data_key`

    def samples_of(self, recipe: Recipe) -> str:
        """How many samples a recipe trains on: of the data, or, in brackets, of what is known of them."""
        splits = self.samples.get(data_key(recipe))
        known = known_of(recipe.data, recipe.recipe)
        return f"{len(splits[0]):,}" if splits else f"({known.samples:,})" if known else "(?)"

    @property
    def total(self) -> int:
        return len(self.trials) or self.space.trials

    def recipe_of(self, cell: Cell, seed: int) -> Recipe:
        request = self.request
        recipe = cells_.recipe_of(self.space, cell, seed, request.overrides or {}, request.data_root)
        splits = self.samples.get(data_key(recipe))
        return recipe if splits is None else build.resolve(recipe, splits[0].width())


def make_plan(request: SweepRequest, *, listed: bool = False) -> SweepPlan:
    """Check everything that can be checked. Raises InputError, one sentence; a data set that is not there is no error
    unless nothing remains. `listed`: only to be shown, so that data and teachers need not be there."""
    space, missing = at_scale(request.space, request.scale)
    paper_numbers(request.space)
    paper_seconds(request.space)
    changes = {"seeds": request.seeds, "trials": request.trials, "max_trials": request.max_trials}
    space = space.model_copy(update={k: v for k, v in changes.items() if v is not None})
    overrides, only = request.overrides or {}, request.only or {}
    cells_.check_axes(space, overrides)
    cells_.check_only(space, only)
    space = with_objective(request, space)
    _check_prune(space, overrides)
    opened = _Opened(space, listed)
    if space.search == "optuna":
        return _open_search(request, space, opened)
    cells_.check_size(space, only, missing)
    wanted = (cell for cell in cells_.cells(space) if cells_.chosen(cell, only))
    not_run, runnable = _apart(wanted, missing, request.scale)
    if request.pilot:
        ends = extremes(space, paper_numbers(request.space), [cell.key for cell in runnable])
        not_run, runnable = {}, [cell for cell in runnable if cell.key in ends]
    trials: dict[str, Trial] = {}
    ids: dict[tuple[str, ...], tuple[str, ...]] = {}
    refused = []
    for cell in runnable:
        try:
            found = [
                cells_.trial_of(cell, _checked(request, space, cell, seed, opened)) for seed in space.seeds
            ]
            trials |= {trial.id: trial for trial in found}  # two cells may be one run: a small value for both
            ids[cell.key] = tuple(trial.id for trial in found)
        except MissingDataError as error:
            not_run[cell.key] = str(error)
        except InputError as error:
            refused.append(f"{cell}: {error}")
    _raise_refused(space, refused)
    if not trials:
        reasons = "; ".join(dict.fromkeys(not_run.values())) or "only. leaves none"
        raise InputError(f"space {space.name}: no cell can be run here: {reasons}")
    recipes = tuple(trial.recipe for trial in trials.values())
    return SweepPlan(request, space, recipes, tuple(trials.values()), ids, not_run, opened.samples)


def with_objective(request: SweepRequest, space: Space) -> Space:
    """A space that names no objective is judged by the linear probe, or where there is none by what stands for it."""
    if "objectives" in space.model_fields_set:
        return space
    first = cells_.cell_of(space, corners(space)[0])
    try:
        asked = listed_recipe(
            space, first, space.seeds[0], request.overrides or {}, request.data_root
        ).eval.protocols
    except InputError:  # the cell is refused, and told, with all others
        return space
    found = next((metric for protocol, metric in HEADLINES.items() if protocol in asked), None)
    return space.model_copy(update={"objectives": {found: "max"}}) if found else space


def _checked(request: SweepRequest, space: Space, cell: Cell, seed: int, opened: _Opened) -> Recipe:
    overrides, root = request.overrides or {}, request.data_root
    try:
        return opened.check(cells_.recipe_of(space, cell, seed, overrides, root))
    except InputError:
        if not opened.listed:
            raise
        return listed_recipe(space, cell, seed, overrides, root)


def _apart(
    wanted: Iterable[Cell], missing: Mapping[str, set[str]], scale: str
) -> tuple[dict[tuple[str, ...], str], list[Cell]]:
    """Cells that this scale leaves out, with the reason, and the others."""
    not_run, runnable = {}, []
    for cell in wanted:
        if why := _left_out(cell, missing, scale):
            not_run[cell.key] = why
        else:
            runnable.append(cell)
    return not_run, runnable


def _left_out(cell: Cell, missing: Mapping[str, set[str]], scale: str) -> str:
    for axis, labels in missing.items():
        if cell.labels[axis] in labels:
            return f"{axis}={cell.labels[axis]} has no small version (scale={scale})"
    return ""


def _raise_refused(space: Space, refused: list[str]) -> None:
    if refused:
        shown = "; ".join(refused[: cells_.SHOWN])
        more = f"; and {len(refused) - cells_.SHOWN} more" if len(refused) > cells_.SHOWN else ""
        raise InputError(f"space {space.name}: the recipe refuses {len(refused)} cell(s): {shown}{more}")


def _check_prune(space: Space, overrides: Mapping[str, str]) -> None:
    if space.prune is None:
        return
    every = overrides.get("eval.every_epochs", space.fixed.get("eval.every_epochs"))
    if str(every) == "0":
        raise InputError(
            f"space {space.name}: prune watches {space.prune.signal}, which is computed at online evaluations; set"
            " eval.every_epochs above 0"
        )


def check_metrics(space: Space, recipe: Recipe, division: Division) -> None:
    """Raises InputError for an objective, or a signal to prune by, that no run of the recipe has on its data."""
    known = {
        SECONDS,
        *final_names(recipe, division),
        *final_names_at(recipe, run.divisions_elsewhere(recipe)),
    }
    measures = [metric for metrics in space.measures.values() for metric in metrics.values()]
    for name in [*space.objectives, *measures]:
        if name not in known:
            at_hand = nearest(name, sorted(known), "it can be")
            asked = ", ".join(recipe.eval.protocols) or "none"
            raise InputError(
                f"objective {name} comes of no protocol here (eval.protocols={asked}); {at_hand}"
            )
    if space.prune and not space.prune.signal.startswith("health/level"):
        online = online_names(recipe, division)
        if space.prune.signal not in online:
            at_hand = nearest(space.prune.signal, sorted(online), "it can be")
            raise InputError(f"prune.signal {space.prune.signal} is not computed during training; {at_hand}")


def _open_search(request: SweepRequest, space: Space, opened: _Opened) -> SweepPlan:
    """An open search has no list of trials; its corners are checked, and its data opened, once."""
    if space.trials * len(space.seeds[:1]) > space.max_trials:
        raise InputError(
            f"space {space.name} asks for {space.trials} trials, more than max_trials={space.max_trials}"
        )
    recipes, refused = [], []
    for values in corners(space):
        cell = cells_.cell_of(space, values)
        try:
            recipes.append(_checked(request, space, cell, space.seeds[0], opened))
        except InputError as error:
            refused.append(f"{cell}: {error}")
    _raise_refused(space, refused)
    return SweepPlan(request, space, tuple(recipes), (), {}, {}, opened.samples)


def corners(space: Space) -> list[dict[str, Any]]:
    """Values axis -> label or number: each value of each finite axis once, and both ends of each range."""
    choices = {
        name: labels_of(axis) if axis.range is None else list(axis.range) for name, axis in space.axes.items()
    }
    found = []
    for i in range(max(map(len, choices.values()))):
        values: dict[str, Any] = {}
        for name, axis in space.axes.items():
            if cells_.active(axis, {k: str(v) for k, v in values.items()}):
                values[name] = choices[name][min(i, len(choices[name]) - 1)]
        found.append(values)
    return found


def data_key(recipe: Recipe) -> str:
    """Recipes with equal keys read the same samples: the choice of `data.limit` depends on the seed."""
    seed = recipe.seed if recipe.data.limit else None
    return json.dumps([recipe.data.model_dump(mode="json"), seed], sort_keys=True)


class _Opened:
    """Data sets listed once each, and recipes checked once per thing that a check looks at."""

    def __init__(self, space: Space, listed: bool) -> None:
        self._space = space
        self.listed = listed  # the recipes are only to be shown
        self.samples: dict[str, Splits] = {}
        self._missing: dict[str, str] = {}
        self._checked: set[str] = set()

    def check(self, recipe: Recipe) -> Recipe:
        """The recipe, resolved. Raises MissingDataError where the data cannot be opened, InputError where the recipe
        cannot run on it."""
        key = data_key(recipe)
        if key in self._missing:
            raise MissingDataError(self._missing[key])
        if key not in self.samples:
            try:
                train = open_samples(recipe.data, "train", seed=recipe.stream_seed)
                test = open_samples(recipe.data, "eval", seed=recipe.stream_seed)
            except InputError as error:
                self._missing[key] = str(error)
                raise MissingDataError(str(error)) from None
            self.samples[key] = train, test
        recipe = build.resolve(recipe, self.samples[key][0].width())
        if (
            what := json.dumps([key, recipe.method.model_dump(mode="json")], sort_keys=True)
        ) not in self._checked:
            recipe.method.check(len(self.samples[key][0]))
            self._checked.add(what)
        policies = {view: policy.size for view, policy in recipe.view_policies().items()}
        looked_at = [key, recipe.encoder.model_dump(), recipe.views.size, policies, recipe.train.batch_size]
        looked_at += [recipe.eval.model_dump(), recipe.init_from, recipe.teacher.model_dump()]
        if (what := json.dumps(looked_at, sort_keys=True)) not in self._checked:
            run.check(recipe, *self.samples[key])
            check_metrics(self._space, recipe, run.division_of(*self.samples[key]))
            self._checked.add(what)
        return recipe
