"""From `key=value` arguments to a recipe, and from a recipe to YAML.

A recipe is the defaults, changed by a YAML file of differences and then by overrides with dots (`train.epochs=200`).
Without a recipe and without data the embedded recipe `ressl/digits` runs. An override is read by the type that its
setting has: text as it stands, anything else as YAML.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from raysurl.errors import InputError
from raysurl.paths import given_path
from raysurl.recipe.files import merge, parse_yaml, read_recipe_file, read_stored
from raysurl.recipe.method_config import config_class
from raysurl.recipe.model import DEFAULT_METHOD, Recipe, recipe_from
from raysurl.recipe.schema import models_at
from raysurl.recipe.sections import Train
from raysurl.recipe.warmup import shortened

EMBEDDED = "ressl/digits"  # what runs when nothing is asked for: data and recipe come with the package

# settings that say nothing of an encoder that is trained, its data or its evaluation
OF_TRAINING = (
    *("recipe", "method", "norm", "train", "memory", "checkpoint", "log", "runtime", "preset"),
    *("output", "resume", "init_from"),
)


def load_recipe(arguments: Sequence[str]) -> Recipe:
    """Build a recipe from `key=value` arguments; `recipe=<name>` starts from a packaged or given YAML file.

    Raises InputError, one sentence, for an unknown key (the nearest valid one named) or a bad value.
    """
    return recipe_of(dict(split_argument(argument) for argument in arguments))


def recipe_of(given: Mapping[str, Any]) -> Recipe:
    """`load_recipe` of a mapping with dots in its keys: text is read as it was typed, any other value as it is."""
    given = dict(given)
    tree: dict[str, Any] = {}
    name = given.pop("recipe", None if _names_data(given) else EMBEDDED)
    if name:
        merge(tree, read_recipe_file(name))
        tree["recipe"] = name
    before = _epochs(tree)
    recipe = recipe_from(overridden(tree, given))
    return shortened(recipe, before, keep=frozenset(given)) if "train.epochs" in given else recipe


def _epochs(tree: dict[str, Any]) -> int:
    """What a recipe's warm-ups are meant for; they shrink with `train.epochs` where that alone is changed."""
    train = tree.get("train")
    given = train.get("epochs") if isinstance(train, dict) else None
    return given if isinstance(given, int) and given > 0 else Train().epochs


def continued(given: Mapping[str, Any]) -> Recipe:
    """The stored recipe of the run in `output`, changed by what else is given. Raises InputError for no run."""
    if not given.get("output"):
        raise InputError("resume=true needs output=DIR, the run directory to continue")
    run_dir = given_path("output", given["output"])
    if not (run_dir / "recipe.yaml").is_file():
        raise InputError(f"output={given['output']} has no recipe.yaml, so there is no run to resume")
    stored = read_stored(run_dir)
    named = stored.get("recipe")
    if "recipe" in given and given["recipe"] != named:
        raise InputError(
            f"the run in {given['output']} was started with recipe={named}, not {given['recipe']}"
        )
    method = _method_of(stored)
    if method and given.get("method.name", method) != method:
        raise InputError(
            f"the run in {given['output']} has method.name={method}; begin another for {given['method.name']}"
        )
    changes = {"streams": stored["streams"], **given, "recipe": str(run_dir / "recipe.yaml")}
    return recipe_of(changes).model_copy(update={"recipe": named})


def overridden(tree: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of differences from the defaults, changed in place by overrides: text as it was typed, or values."""
    name = given.get("method.name") or _method_of(tree)
    for key, text in given.items():
        changes: Any = typed(key, text, str(name or DEFAULT_METHOD)) if isinstance(text, str) else text
        for part in reversed(key.split(".")):
            changes = {part: changes}
        merge(tree, changes)
    return tree


def _method_of(tree: Mapping[str, Any]) -> Any:
    method = tree.get("method")
    return method.get("name") if isinstance(method, dict) else None


def _names_data(given: Iterable[str]) -> bool:
    return any(key in ("data", "data.name", "data.path") for key in given)


def split_argument(argument: str) -> tuple[str, str]:
    """`key=value` -> (key, value), the value as it was typed but for one pair of quotes around it."""
    key, separator, text = argument.partition("=")
    if not separator or not key:
        raise InputError(f"argument {argument!r} is not of the form key=value, for example train.epochs=200")
    if "\0" in text:
        raise InputError(f"{key}={text} holds a NUL character, which no setting can; leave it out")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return key, text


def take(arguments: Sequence[str], *keys: str) -> tuple[dict[str, str], dict[str, str]]:
    """The arguments whose keys are a command's own, and all others; of a key that is given twice the last."""
    given = dict(split_argument(a) for a in arguments)
    return {key: given.pop(key) for key in keys if key in given}, given


def of_one_set(given: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of a command that reads data.path alone. Of other data than the run's all is read: nothing is
    left out for the run's test set.

    Raises InputError for a test set, which nobody would read.
    """
    if "data.eval_path" in given:
        raise InputError(
            "data.eval_path= names a test set, which is not read here; name what to read with data.path="
        )
    return {**given, "data.eval_path": None} if "data.path" in given else dict(given)


def recipe_of_trained(tree: dict[str, Any], given: Mapping[str, Any]) -> Recipe:
    """The recipe of an encoder that is trained, changed by overrides. Raises InputError for a setting of training
    alone, which would change nothing."""
    for key in given:
        if key.partition(".")[0] in OF_TRAINING:
            raise InputError(f"{key} is a setting of training, and the encoder is trained; leave it out")
    return recipe_from(overridden(tree, given))


def yaml_argument(argument: str) -> tuple[str, Any]:
    """`key=value` -> (key, value) where the key is no setting of a recipe, so that the value is read as YAML."""
    key, text = split_argument(argument)
    return key, parse_yaml(text, argument)


def typed(key: str, text: str, method: str) -> Any:
    """The value of an override, read by the type of its setting; of a key that is none, as YAML."""
    section, _, rest = key.partition(".")
    if section == "method" and rest and rest != "name":
        annotation = _annotation(config_class(method), rest)
    else:
        annotation = _annotation(Recipe, key)
    options = _options(annotation)
    if text == "" and type(None) in options:
        return None
    if str in options:
        return text
    for literal in options:
        if not isinstance(literal, type) and str(literal) == text:
            return literal
    value = parse_yaml(text, f"{key}={text}")
    return text if value is None and type(None) not in options and options else value


def _annotation(model: Any, dotted: str) -> Any:
    """The annotation of the setting at a dotted key; None where there is none."""
    *path, last = dotted.split(".")
    holders = [m for m in models_at(model, path) if last in m.model_fields]
    return holders[0].model_fields[last].annotation if holders else None


def _options(annotation: Any) -> list[Any]:
    """The members of a union, and the values of literals, one by one."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [option for part in get_args(annotation) for option in _options(part)]
    if origin is Literal:
        return list(get_args(annotation))
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    return [] if annotation is None else [annotation]


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; reading it again gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
