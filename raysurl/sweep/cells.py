"""From a space to its cells and trials, each a whole validated recipe, before anything starts."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from raysurl.errors import InputError
from raysurl.recipe import DEFAULT_METHOD, Recipe, nearest, read_recipe_file, recipe_from, typed
from raysurl.recipe.method_config import config_class
from raysurl.sweep.axis import Axis, Settings, as_settings, key_of, labels_of, settings_of, text
from raysurl.sweep.space import INACTIVE, Space
from raysurl.train.run_directory import FREE_ON_RESUME

ROOT = "{root}"  # in a path of a space: what the command names as data_root=
PATHS = (("data", "path"), ("data", "eval_path"), ("teacher", "name"), ("teacher", "weights"))
SHOWN = 12  # refused cells that an error names
LISTED = 10_000  # cells that are listed to count them


@dataclass(frozen=True)
class Cell:
    """`labels`: axis -> label, in the order of the axes. `settings`: what they set."""

    labels: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(self.labels.values())

    def __str__(self) -> str:
        return ", ".join(f"{name}={label}" for name, label in self.labels.items() if label != INACTIVE)


@dataclass(frozen=True)
class Trial:
    id: str
    cell: Cell
    recipe: Recipe

    @property
    def seed(self) -> int:
        return self.recipe.seed


# -------------------------------------------------------------------- cells


def cells(space: Space) -> Iterator[Cell]:
    """All combinations of a grid, the last axis fastest; a conditional axis counts where it is active."""
    yield from _cells(space, list(space.axes.items()), {}, {})


def _cells(
    space: Space, axes: list[tuple[str, Axis]], labels: dict[str, str], settings: Settings
) -> Iterator[Cell]:
    if not axes:
        yield Cell(labels, settings)
        return
    (name, axis), *rest = axes
    if not active(axis, labels):
        yield from _cells(space, rest, {**labels, name: INACTIVE}, settings)
        return
    for label in labels_of(axis):
        more = settings_of(name, axis, label)
        yield from _cells(space, rest, {**labels, name: label}, {**settings, **more})


def active(axis: Axis, labels: Mapping[str, str]) -> bool:
    return all(labels.get(other) in allowed for other, allowed in axis.when.items())


def cell_of(space: Space, values: Mapping[str, Any]) -> Cell:
    """The cell of sampled values: axis -> label of a finite axis, or the number itself; inactive axes left out."""
    labels: dict[str, str] = {}
    settings: Settings = {}
    for name, axis in space.axes.items():
        if name not in values:
            labels[name] = INACTIVE
            continue
        value = values[name]
        labels[name] = str(value) if axis.range is None else text(_rounded(value))
        if axis.range is None:
            settings |= settings_of(name, axis, str(value))
        else:
            settings |= as_settings(name, axis, labels[name], _rounded(value))
    return Cell(labels, settings)


def _rounded(value: float) -> float | int:
    """Four significant digits say all there is to say about a sampled setting, and read better."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def check_size(space: Space, only: Mapping[str, Sequence[str]], missing: Mapping[str, set[str]]) -> None:
    """Raises InputError where the cells to run are more trials than max_trials: before they are listed where that would
    take long, and then of the whole product, conditional axes included."""
    kept = {
        name: len([v for v in labels_of(axis) if v in only.get(name, [v]) and v not in missing.get(name, ())])
        for name, axis in space.axes.items()
    }
    size = math.prod(kept.values())
    if math.prod(len(labels_of(axis)) for axis in space.axes.values()) <= LISTED:
        found = [cell for cell in cells(space) if chosen(cell, only)]
        size = sum(not any(cell.labels[name] in labels for name, labels in missing.items()) for cell in found)
    trials = size * len(space.seeds)
    if trials > space.max_trials:
        raise InputError(
            f"space {space.name} has {trials:,} trials ({size:,} cells × {len(space.seeds)} seeds), more than"
            f" max_trials={space.max_trials}; take fewer values (only.AXIS=…), fewer seeds, or raise max_trials"
        )


def chosen(cell: Cell, only: Mapping[str, Sequence[str]]) -> bool:
    return all(cell.labels[axis] in labels for axis, labels in only.items())


def check_only(space: Space, only: Mapping[str, Sequence[str]]) -> None:
    """Raises InputError where `only.AXIS=LABEL` names what is not there."""
    for name, labels in only.items():
        if name not in space.axes:
            raise InputError(f"only.{name}: no such axis; {nearest(name, space.axes, 'the axes are')}")
        known = labels_of(space.axes[name])
        if not labels:
            raise InputError(f"only.{name} names no value; its values are {', '.join(known)}")
        if wrong := [label for label in labels if label not in known]:
            raise InputError(f"only.{name}={wrong[0]}: {nearest(wrong[0], known, 'its values are')}")


# -------------------------------------------------------------------- recipes


@functools.cache
def recipe_tree(name: str) -> dict[str, Any]:
    """A recipe file, read once; not to be changed."""
    return read_recipe_file(name)


def tree_of(space: Space, settings: Mapping[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """Differences from the defaults: the recipe file, then the space's fixed settings, the cell's, the command's.

    A cell that sets `teacher.name: null` has no teacher, whatever the command names."""
    layers = [space.fixed, settings, {key: text for key, text in overrides.items() if key == "recipe"}]
    name = next((layer["recipe"] for layer in reversed(layers) if "recipe" in layer), space.recipe)
    tree = copy.deepcopy(recipe_tree(str(name)))
    tree["recipe"] = str(name)
    for layer in layers:
        for key, value in layer.items():
            if key != "recipe":
                _set(tree, key, value)
    taught = settings.get("teacher.name", "") is not None
    for key, text_given in overrides.items():
        if key.startswith("teacher.") and not taught:
            continue
        method = tree.get("method")
        name = method.get("name") if isinstance(method, dict) else None
        _set(tree, key, typed(key, text_given, str(name or DEFAULT_METHOD)))
    scale = tree.get("scale")
    workers = scale.get("workers") if isinstance(scale, dict) else None
    tree["runtime"] = "ray" if isinstance(workers, int) and workers > 1 else "local"
    if isinstance(log := tree.get("log", {}), dict):  # else the recipe refuses it
        tree["log"] = {"tensorboard": False, **log}
    return tree


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Replace what is at the key, mappings included: a policy of the recipe leaves nothing behind."""
    *path, last = dotted.split(".")
    for key in path:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[last] = copy.deepcopy(value)


def recipe_of(space: Space, cell: Cell, seed: int, overrides: Mapping[str, str], root: str | None) -> Recipe:
    """The whole recipe of a trial. Raises InputError where the recipe refuses it or `data_root=` is missing."""
    tree = tree_of(space, cell.settings, overrides)
    for section, key in PATHS:
        _rooted(tree.get(section), key, section, root)
    others = tree["eval"].get("elsewhere") if isinstance(tree.get("eval"), dict) else None
    for name, place in others.items() if isinstance(others, dict) else ():
        if isinstance(place, dict):
            for key in ("path", "eval_path"):
                _rooted(place.get("data"), key, f"eval.elsewhere.{name}", root)
    if tree.get("preset") is not None:
        raise InputError(
            f"preset={tree['preset']} cuts each run by its own speed, and a sweep compares runs of one length; set"
            " train.epochs= and data.limit= instead"
        )
    return recipe_from({**tree, "seed": seed})


def _rooted(inside: Any, key: str, named: str, root: str | None) -> None:
    """Put `root` for ROOT in a path of a section."""
    if isinstance(inside, dict) and isinstance(inside.get(key), str) and ROOT in inside[key]:
        if root is None:
            raise MissingDataError(f"its {named} is looked for under data_root=, which is not given")
        inside[key] = inside[key].replace(ROOT, root)


class MissingDataError(InputError):
    """Data that a cell needs is not there: the cell is not run, and the table says so."""


def trial_of(cell: Cell, recipe: Recipe) -> Trial:
    """Its id is a hash of all that the recipe says beyond the defaults, so that a changed space never takes an old
    result, and a new setting of a later version, which stands at its default, leaves all results in use. Several
    workers count: curves part from those of one process, by rounding or by a norm within each worker."""
    what = recipe.model_dump(
        mode="json", exclude_defaults=True, exclude=FREE_ON_RESUME - {"eval"} | {"method"}
    )
    what["method"] = {
        "name": recipe.method.name,
        **recipe.method.model_dump(mode="json", exclude_defaults=True, exclude={"name"}),
    }
    if (workers := recipe.scale.workers or 1) > 1:
        what["workers"] = workers
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    return Trial(f"{digest}-s{recipe.seed}", cell, recipe)


def check_axes(space: Space, overrides: Mapping[str, str]) -> None:
    """Raises InputError for a key that is not in the recipe, naming the nearest, or an argument that is an axis."""
    known = known_keys(space)
    axes = {key_of(name, axis): name for name, axis in space.axes.items()}
    if varied := [key for key in overrides if key in axes]:
        raise InputError(
            f"argument {varied[0]}= is an axis of space {space.name}, whose cells would no longer be what they are"
            f" called; choose with only.{axes[varied[0]]}="
        )
    for name, axis in space.axes.items():
        labels = labels_of(axis)
        key = key_of(name, axis)
        keys = {key: None} if key else {k: None for label in labels for k in settings_of(name, axis, label)}
        for each in keys:
            _check_key(space, known, each, f"axis {name}")
    for key in space.fixed:
        _check_key(space, known, key, "fixed")
    for key in overrides:
        _check_key(space, known, key, "argument")


def _check_key(space: Space, known: Mapping[str, bool], dotted: str, what: str) -> None:
    head = [dotted[: i or None] for i in _ends(dotted)]
    if not any(part in known and (part == dotted or known[part]) for part in head):
        near = nearest(dotted, known, "it has")
        if near.startswith("it has"):
            section = [k for k in known if k.startswith(dotted.rpartition(".")[0] + ".")] or list(
                Recipe.model_fields
            )
            near = f"valid here: {', '.join(section)}"
        raise InputError(f"space {space.name}: {what} sets {dotted}, which is not in the recipe; {near}")


def _ends(dotted: str) -> list[int]:
    """Where each prefix of a dotted key ends; 0 for the whole."""
    return [i for i, c in enumerate(dotted) if c == "."] + [0]


def known_keys(space: Space) -> dict[str, bool]:
    """All dotted keys of the recipes and methods that the space uses -> whether any key may stand below it."""
    bundles = [
        settings_of(name, axis, label) for name, axis in space.axes.items() for label in labels_of(axis)
    ]
    names: set[str] = set()
    for layer in ({"recipe": space.recipe}, space.fixed, *bundles):
        method = layer.get("method", {"name": layer.get("method.name")})
        if isinstance(method, dict) and method.get("name"):
            names.add(str(method["name"]))
        if "recipe" in layer:
            names.add((recipe_tree(str(layer["recipe"])).get("method") or {}).get("name", DEFAULT_METHOD))
    keys: dict[str, bool] = {}
    _walk(Recipe, "", keys)
    for name in sorted(names):
        _walk(config_class(name), "method.", keys)
    return {**keys, "method": False, "method.name": False}


def _walk(model: type[BaseModel], prefix: str, keys: dict[str, bool]) -> None:
    for name, field in model.model_fields.items():
        inner = field.annotation
        keys[prefix + name] = "dict" in str(inner)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            _walk(inner, f"{prefix}{name}.", keys)
