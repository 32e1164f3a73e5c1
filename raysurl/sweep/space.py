"""A search space: what one file of search_spaces/ says, checked as far as it can be without the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from raysurl.errors import InputError
from raysurl.paths import given_path
from raysurl.recipe import read_mapping
from raysurl.recipe.files import with_base
from raysurl.recipe.schema import Section, nearest, sentence
from raysurl.sweep.axis import Axis, check_axis, labels_of, text, value_of
from raysurl.sweep.claims import Claim
from raysurl.sweep.pilot import Pilot

SPACES = Path(str(resources.files("raysurl") / "search_spaces"))
INACTIVE = "–"  # the label of a conditional axis where its condition does not hold
SMALL = ("cpu", "photographs")  # scales of small versions
SECONDS = "seconds"  # an objective that every trial has: its time of training and evaluation


class Prune(Section):
    """Ending poor trials early by `signal`, which the trainer logs at each online evaluation (eval.every_epochs).

    asha: of the trials that came to a rung, the best 1/reduction go on; with several `brackets`, as in Hyperband, each
    later one begins to look reduction times later, and trials are divided among them. median: below the median of the
    others.
    """

    kind: Literal["asha", "median"] = "asha"
    signal: str = "health/rankme"
    mode: Literal["max", "min"] = "max"
    grace_epochs: int = Field(2, ge=1)
    reduction: float = Field(3.0, gt=1)
    brackets: int = Field(1, ge=1)


class Stop(Section):
    """When a collapsed trial is ended: `patience` epochs in a row, its spread not growing, past the share `after`."""

    after: float = Field(0.2, ge=0, le=1)
    patience: int = Field(3, ge=1)


class EpochSeconds(Section):
    """The paper's seconds per epoch, as `paper` of a space of one axis; ours are shown as shares of the cell `to`."""

    to: str
    paper: dict[str, float] | list[float]


class Band(Section):
    """What counts as reproduced: at full scale the distance in points, in a small version the rank agreement."""

    points: float = Field(1.0, gt=0)
    spearman: float = Field(0.5, ge=-1, le=1)


class Small(Section):
    """A small version: changes of the published space, whose own `data.` settings go where a recipe is named here.
    `axes`: axis -> label -> the small value, or null where the cell cannot be run at this scale."""

    recipe: str | None = None
    fixed: dict[str, Any] = Field({})
    axes: dict[str, dict[str, Any]] = Field({})
    stands_in: str = ""  # which data stand in for the paper's, and what else differs
    pilot: Pilot | None = None  # what `sweep.py space=… scale=… pilot=true` found of its extreme cells
    seeds: tuple[int, ...] | None = None
    trials: int | None = Field(None, ge=1)
    # None: as at full scale, whose epochs of grace may be more than a small run has
    prune: Prune | None = None
    max_hours: float = Field(1.0, gt=0)


class Space(Section):
    name: str
    title: str
    search: Literal["grid", "optuna"] = "grid"
    recipe: str
    fixed: dict[str, Any] = Field({})
    axes: dict[str, Axis]
    # the first: the headline
    objectives: dict[str, Literal["max", "min"]] = Field({"eval/linear_top1": "max"})
    columns: str | None = None  # the axis that makes a table's columns; None: the last
    shown: dict[str, str] = Field({})  # heading -> metric, of a table of one axis; {}: the headline alone
    measures: dict[str, dict[str, str]] = Field(
        {}
    )  # axis -> label -> metric: its cells are of the same runs, each read by another metric
    group: str = "dataset"  # cells are ranked within each label of this axis, where the space has it
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    trials: int = Field(24, ge=1)  # optuna only
    max_trials: int = Field(300, ge=1)
    prune: Prune | None = None
    stop: Stop = Stop()
    # the paper's numbers, nested in the order of the axes; last level may be a list
    paper: dict[str, Any] | list[Any] = Field({})
    read_from_figure: bool = False  # the numbers of `paper` were read off a plot, which prints none
    epoch_seconds: EpochSeconds | None = None
    says: str = ""  # what the paper says in words where it prints no number
    claims: tuple[Claim, ...] = ()  # what it concludes from the numbers
    band: Band = Band()
    cpu: Small | None = None  # of data that are always at hand
    photographs: Small | None = None  # of more costly ones, which data_root= names

    def small(self, scale: str) -> Small | None:
        """Its version at a scale; None at full scale, and where it has none."""
        found: Small | None = getattr(self, scale) if scale in SMALL else None
        return found

    @property
    def usual_scale(self) -> str:
        """The first of its small versions; full where it has none."""
        return next((scale for scale in SMALL if self.small(scale)), "full")

    def stands_in(self, scale: str) -> str:
        """Which data stand in for the paper's; "" at full scale."""
        small = self.small(scale)
        return (small.stands_in or "no stand-ins") if small else ""

    @property
    def pilots(self) -> dict[str, Pilot]:
        """Scale -> what its pilot found, of the small versions that have one."""
        return {s: small.pilot for s in SMALL if (small := self.small(s)) and small.pilot}

    @property
    def metric(self) -> str:
        return next(iter(self.objectives))

    def metric_of(self, labels: Sequence[str]) -> str:
        """What a cell is judged by, its labels in the order of the axes."""
        for axis, label in zip(self.axes, labels, strict=True):
            if (found := self.measures.get(axis, {}).get(label)) is not None:
                return found
        return self.metric

    @model_validator(mode="after")
    def _check(self) -> Space:
        if not self.axes:
            raise ValueError("a space needs at least one axis")
        for name, axis in self.axes.items():
            check_axis(name, axis, self)
        if self.search == "optuna" and self.prune and len(self.objectives) > 1:
            raise ValueError("a search with several objectives cannot be pruned; leave out prune")
        if min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)} must be different whole numbers from 0 on")
        if not self.objectives:
            raise ValueError("objectives names no metric")
        if (timed := self.epoch_seconds) and (
            len(self.axes) > 1 or timed.to not in labels_of(next(iter(self.axes.values())))
        ):
            raise ValueError(f"epoch_seconds.to={timed.to} must be a label of the only axis")
        if self.columns is not None and self.columns not in self.axes:
            raise ValueError(f"columns={self.columns} is not an axis; the axes are {', '.join(self.axes)}")
        for claim in self.claims:
            claim.check({name: labels_of(axis) for name, axis in self.axes.items()})
        for name, metrics in self.measures.items():
            known = labels_of(self.axes[name]) if name in self.axes else []
            if self.search != "grid" or sorted(metrics) != sorted(known):
                raise ValueError(
                    f"measures.{name} must be of a grid's axis, and name a metric for each of its values"
                )
        return self


# -------------------------------------------------------------------- reading


def read_space(name: str) -> Space:
    """The space of a file, or of search_spaces/ by name, upon its `base`. Raises InputError, one sentence."""
    path = given_path("space", name)
    if path.suffix not in (".yaml", ".yml"):
        path = SPACES / given_path("space", f"{name}.yaml")
    if not path.is_file():
        known = [p.stem for p in sorted(SPACES.glob("*.yaml"))]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"space={name} is neither a YAML file nor one of {', '.join(known)}{hint}")
    tree = read_mapping(path, f"space={name}", "axes, recipe and title")
    return space_from({"name": path.stem, **with_base(tree, f"space={name}", SPACES)})


def space_from(tree: Mapping[str, Any]) -> Space:
    tree = _strings(dict(tree))
    axes = tree.get("axes") or {}
    if not isinstance(axes, dict):
        raise InputError("axes must be a mapping of axis names to values")
    shorthand = {k: {"grid": v} if isinstance(v, list) or v is None else v for k, v in axes.items()}
    for name, metrics in (tree.get("measures") or {}).items():
        if isinstance(metrics, dict):
            shorthand.setdefault(name, {"grid": {label: {} for label in metrics}})
    shorthand = {k: {"grid": []} if v == {"grid": None} else v for k, v in shorthand.items()}
    try:
        return Space.model_validate({**tree, "axes": shorthand})
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "value_error":
            raise InputError(f"space {tree['name']}: {problem['ctx']['error']}") from None
        raise InputError(f"space {tree['name']}: {sentence(error, Space)}") from None


def _strings(node: Any) -> Any:
    """The same tree with text for keys: YAML reads 0.1 and true as a number and a truth value."""
    if isinstance(node, dict):
        return {text(k): _strings(v) for k, v in node.items()}
    return [_strings(v) for v in node] if isinstance(node, list) else node


# -------------------------------------------------------------------- scale


def at_scale(space: Space, scale: str) -> tuple[Space, dict[str, set[str]]]:
    """The space with its small values, and axis -> labels that this scale does not run. Raises InputError."""
    if scale == "full":
        return space, {}
    if scale not in SMALL:
        raise InputError(f"scale={scale} is not known; choose {', '.join(SMALL)} or full")
    small = space.small(scale)
    if small is None:
        known = [s for s in SMALL if space.small(s)]
        raise InputError(
            f"space {space.name} has no small version of that name ({scale}:); run it with"
            f" scale={' or '.join([*known, 'full'])}"
        )
    axes, missing = dict(space.axes), {}
    for name, mapped in small.axes.items():
        if name not in axes:
            raise InputError(
                f"space {space.name}: {scale}.axes names {name}; {nearest(name, axes, 'the axes are')}"
            )
        axis = axes[name]
        values = {label: value_of(axis, label) for label in labels_of(axis)}
        if wrong := [label for label in mapped if label not in values]:
            raise InputError(
                f"space {space.name}: {scale}.axes.{name} maps {wrong[0]};"
                f" {nearest(wrong[0], values, 'its values are')}"
            )
        missing[name] = {label for label, value in mapped.items() if value is None}
        values |= {label: value for label, value in mapped.items() if value is not None}
        axes[name] = axis.model_copy(update={"grid": values, "choice": None})
    # a small recipe brings its own data
    kept = {k: v for k, v in space.fixed.items() if not (small.recipe and k.startswith("data."))}
    changes = {
        "axes": axes,
        "recipe": small.recipe or space.recipe,
        "fixed": {**kept, **small.fixed},
        "seeds": small.seeds or space.seeds,
        "trials": small.trials or space.trials,
        "prune": small.prune or space.prune,
    }
    return space.model_copy(update=changes), missing
