"""A recipe: one validated, typed description of a run.

A recipe is the defaults (raysurl.sections and the method's `Config`), changed by a YAML file of differences and
then by `key=value` overrides with dots (`train.epochs=200`). Without a recipe and without data the embedded
recipe `ressl/digits` runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from raysurl import method as methods
from raysurl import teachers
from raysurl.errors import InputError
from raysurl.sections import (
    Checkpoint,
    Data,
    Encoder,
    Evaluation,
    Log,
    MemorySettings,
    Optimizer,
    Scale,
    Schedule,
    Section,
    Teacher,
    Train,
    Views,
    sentence,
)
from raysurl.views import POLICIES, Policy

__all__ = [
    "DEFAULT_METHOD",
    "Data",
    "Evaluation",
    "Optimizer",
    "Recipe",
    "Schedule",
    "Train",
    "Views",
    "dump",
    "load_recipe",
]

DEFAULT_METHOD = "ressl"
EMBEDDED = "ressl/digits"  # what runs when nothing is asked for: data and recipe come with the package


class Recipe(Section):
    recipe: str | None = None
    method: dict[str, Any] = Field(
        {"name": DEFAULT_METHOD}
    )  # and the method's own settings, see `method_config`
    data: Data = Data()
    views: Views = Views()
    encoder: Encoder = Encoder()
    teacher: Teacher = Teacher()
    norm: Literal["sync", "shuffle", "local"] = "sync"
    train: Train = Train()
    memory: MemorySettings = MemorySettings()
    checkpoint: Checkpoint = Checkpoint()
    eval: Evaluation = Evaluation()
    scale: Scale = Scale()
    log: Log = Log()
    runtime: Literal["ray", "local"] = "ray"
    seed: int = Field(0, ge=0)
    output: str | None = None
    resume: bool = False
    init_from: str | None = None

    @property
    def total_epochs(self) -> int:
        return self.train.epochs * self.train.rounds

    @property
    def staleness(self) -> int:
        chosen = self.memory.staleness
        return self.method_class().staleness if chosen is None else chosen

    def method_class(self) -> type[methods.Method]:
        return methods.load(self.method["name"])

    def method_config(self) -> methods.MethodConfig:
        settings = {key: value for key, value in self.method.items() if key != "name"}
        return self.method_class().Config.model_validate(settings)

    def view_policies(self) -> dict[str, Policy]:
        """View name -> policy: what the recipe names, else the view's default, which may be another view's policy."""
        defaults, named = self.method_class().views(self.method_config()), self.views.policies

        def of(view: str) -> Policy:
            default = defaults[view]
            return named.get(view) or (of(default) if default in defaults else POLICIES[default])

        policies = {view: of(view) for view in defaults}
        t = self.teacher
        if t.name and t.view == "plain" and t.name != teachers.LABELS and not t.name.endswith(".parquet"):
            policies["teacher"] = POLICIES["plain"].model_copy(update={"size": t.size})
        return policies


# -------------------------------------------------------------------- reading


def load_recipe(arguments: Sequence[str]) -> Recipe:
    """Build a recipe from `key=value` arguments; `recipe=<name>` starts from a packaged or given YAML file.

    Raises InputError, one sentence, for an unknown key (the nearest valid one named) or a bad value.
    """
    overrides = dict(parse_override(argument) for argument in arguments)
    tree: dict[str, Any] = {}
    name = overrides.pop("recipe", None if _names_data(overrides) else EMBEDDED)
    if name:
        merge(tree, read_recipe_file(str(name)))
        tree["recipe"] = str(name)
    merge(tree, overrides_tree(overrides))
    return recipe_from(tree)


def overrides_tree(overrides: dict[str, Any]) -> dict[str, Any]:
    """`{"train.epochs": 2}` -> `{"train": {"epochs": 2}}`."""
    tree: dict[str, Any] = {}
    for dotted, value in overrides.items():
        node: Any = value
        for key in reversed(dotted.split(".")):
            node = {key: node}
        merge(tree, node)
    return tree


def _names_data(overrides: dict[str, Any]) -> bool:
    return any(key in ("data", "data.name", "data.path") for key in overrides)


def recipe_from(tree: dict[str, Any]) -> Recipe:
    """Validate a tree of differences from the defaults."""
    method = tree.get("method") or {}
    if not isinstance(method, dict):
        raise InputError(f"method={method!r} holds no settings; name a method with method.name=")
    tree = {**tree, "method": {"name": DEFAULT_METHOD, **method}}
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise InputError(sentence(error, Recipe)) from None
    try:
        config = recipe.method_config()
    except ValidationError as error:
        raise InputError(sentence(error, recipe.method_class().Config, "method.")) from None
    config = config.for_data(recipe.data.name, recipe.data.path, recipe.data.limit)
    if recipe.teacher.name:
        config = config.for_teacher(partial(teachers.width, recipe.teacher))
    views = recipe.method_class().views(config)
    for view in recipe.views.policies:
        if view not in views:
            raise InputError(
                f"views.policies.{view}: this method has no such view; it has {', '.join(views)}"
            )
    _check(recipe)
    return recipe.model_copy(update={"method": {"name": recipe.method["name"], **config.model_dump()}})


def parse_override(argument: str) -> tuple[str, Any]:
    key, separator, text = argument.partition("=")
    if not separator or not key:
        raise InputError(f"argument {argument!r} is not of the form key=value, for example train.epochs=200")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"the value of {key}={text} is not valid YAML; quote it") from None


def read_recipe_file(name: str) -> dict[str, Any]:
    root = resources.files("raysurl") / "recipes"
    packaged = root / f"{name}.yaml"
    path = Path(name)
    if packaged.is_file():
        path = Path(str(packaged))
    elif not (path.suffix in {".yaml", ".yml"} and path.is_file()):
        known = packaged_recipes()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"recipe={name} is neither a YAML file nor one of {', '.join(known)}{hint}")
    return read_mapping(path, f"recipe={name}", "recipe keys")


def read_mapping(path: Path, named: str, of: str) -> dict[str, Any]:
    """The mapping in a YAML file, an empty file being an empty one. Raises InputError, which calls the file `named`."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{named} is not valid YAML: {error.problem or error.context}{line}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # not text
        raise InputError(f"{named} is not valid YAML: {str(error).splitlines()[0]}") from None
    if tree is not None and not isinstance(tree, dict):
        raise InputError(f"{named} must hold a mapping of {of}")
    return tree or {}


def packaged_recipes() -> list[str]:
    root = Path(str(resources.files("raysurl") / "recipes"))
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    """Merge `changes` into `tree` in place, mapping by mapping."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = value


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; reading it again gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


# -------------------------------------------------------------------- checks


def _check(recipe: Recipe) -> None:
    train, cls = recipe.train, recipe.method_class()
    if train.batch_size % train.accumulate:
        raise InputError(
            f"train.accumulate={train.accumulate} must divide train.batch_size={train.batch_size}"
        )
    if train.accumulate > 1 and cls.couples_batch and not train.allow_split_batch:
        raise InputError(
            f"train.accumulate={train.accumulate} would change the loss of {recipe.method['name']}, which couples"
            " the whole batch; use train.accumulate=1 or say train.allow_split_batch=true"
        )
    if (workers := recipe.scale.workers) and train.batch_size % (workers * train.accumulate):
        raise InputError(
            f"train.batch_size={train.batch_size} must be a multiple of scale.workers × train.accumulate ="
            f" {workers * train.accumulate}"
        )
    config = recipe.method_config()
    if train.sampler == "neighbours" and not cls.has_graph(config):
        raise InputError(
            f"train.sampler=neighbours needs a graph of the samples, and {recipe.method['name']} holds none with these"
            " settings; use train.sampler=permutation"
        )
    if (most := cls.largest_batch(config)) and train.batch_size > most:
        raise InputError(
            f"train.batch_size={train.batch_size} makes more pairs than {recipe.method['name']} takes at once; use at"
            f" most {most}"
        )
    _check_teacher(recipe, cls.takes_teacher(config))
    if recipe.eval.features == "memory" and not cls.remembers_samples:
        raise InputError(
            f"eval.features=memory: {recipe.method['name']} remembers no vector per sample; use backbone or embedding"
        )
    if recipe.resume and recipe.init_from:
        raise InputError("resume=true continues a run and init_from= starts a new one; give one of them")


def _check_teacher(recipe: Recipe, takes: str) -> None:
    method, teacher = recipe.method["name"], recipe.teacher
    if takes == "no" and teacher.name:
        raise InputError(
            f"teacher.name={teacher.name}: {method} learns from no teacher with these settings; leave it out"
        )
    if takes != "no" and not teacher.name:
        raise InputError(
            f"{method} learns from a frozen teacher; name one with teacher.name=, a torchvision model, timm:NAME,"
            " open_clip:NAME/TAG, a run directory, or a Parquet file of embeddings"
        )
    if takes == "labels" and teacher.name != teachers.LABELS:
        raise InputError(f"teacher.name={teacher.name}: {method} learns from teacher.name=labels alone")
    if takes == "network" and teacher.view == "plain":
        raise InputError(
            f"{method} needs a teacher that sees the student's views; use teacher.view=same and a network"
        )
