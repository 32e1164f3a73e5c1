"""The settings of a recipe and of each command as people read them, for `--help` and for shells.

All is read from the text of the modules that define them: key, type, default, and the remark behind the definition.
Nothing is imported, so that the answer comes at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import takewhile
from pathlib import Path

from raysurl import plugins
from raysurl.errors import InputError
from raysurl.shell.definitions import PACKAGE, Setting, classes, constant, fields, imported, tree

MODEL, POLICIES = PACKAGE / "recipe" / "model.py", PACKAGE / "views" / "policies.py"
WORDS = {  # what means the same in every method that has it
    "hidden": "width of the hidden layers of its heads",
    "predictor_hidden": "width of the hidden layers of its predictors",
    "dim": "width of the embedding that the loss sees",
    "head_norm": "batch norm in the heads",
    "queue_size": "keys that the queue holds",
    "tau": "temperature of similarities",
    "ssl_tau": "temperature of the student's InfoNCE",
    "tau_student": "temperature of the student's similarities",
    "tau_teacher": "temperature of the teacher's similarities",
    "momentum": "of the moving average that makes the keys",
    "momentum_schedule": "of that average: as it is, or rising to 1",
}

# -------------------------------------------------------------------- what there is


@cache
def commands() -> tuple[str, ...]:
    return tuple(sorted(p.stem for p in (PACKAGE / "commands").glob("*.py") if p.stem != "__init__"))


@cache
def methods() -> tuple[str, ...]:
    """Modules and packages of raysurl.methods."""
    return tuple(_name_of(p) for p in _method_files())


def recipes() -> tuple[str, ...]:
    """Packaged recipes by name."""
    root = PACKAGE / "recipes"
    names = (p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))
    return tuple(sorted(name for name in names if not name.startswith("bases/")))


def head_of(recipe: str) -> str:
    """The first sentence of a packaged recipe's head."""
    lines = (PACKAGE / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    head = takewhile(
        lambda line: line.startswith("#") and not line.startswith(("# Cost:", "# Command:")), lines
    )
    text = " ".join(line.lstrip("# ") for line in head)
    return re.split(r"\.\s+(?=[A-Z])", text)[0].rstrip(".")


def spaces() -> tuple[str, ...]:
    return tuple(sorted(p.stem for p in (PACKAGE / "search_spaces").glob("*.yaml")))


def data_sources() -> dict[str, str]:
    """`data.name` -> what it reads."""
    found: dict[str, str] = constant(PACKAGE / "data" / "names.py", "KINDS")
    return found


def of_command(name: str) -> list[Setting]:
    """A command's own settings: its module's SETTINGS, key -> (type, default, remark), or those of the command LIKE."""
    path = PACKAGE / "commands" / f"{name}.py"
    own = constant(path.with_stem(constant(path, "LIKE") or name), "SETTINGS") or {}
    return [
        Setting(key, kind, default, about, _listed(key) or _words(kind))
        for key, (kind, default, about) in own.items()
    ]


def taken(name: str, method: str | None = None) -> list[Setting]:
    """Settings of a recipe that a command takes: those under its module's RECIPE, a list of keys or sections."""
    under = tuple(constant(PACKAGE / "commands" / f"{name}.py", "RECIPE") or ())
    return [s for s in of_recipe(method) if s.key.startswith(under)] if under else []


def plugged(kind: plugins.Kind) -> dict[str, str]:
    """Name -> package, of what installed packages offer; nothing where one of them is not as it should be."""
    try:
        return {name: f"of {package}" for name, package in plugins.names(kind).items()}
    except InputError:  # who names one of them is told
        return {}


def method_of(arguments: Sequence[str]) -> str | None:
    """The method that arguments name, by itself or by a packaged recipe's folder."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    named = given.get("method.name") or given.get("recipe", "").partition("/")[0]
    return named if named in methods() or _plugged_file(named) else None


def of_recipe(method: str | None = None) -> list[Setting]:
    """Every setting of a recipe, section by section, with those of one method (None: the default one)."""
    found: list[Setting] = []
    for setting in fields(MODEL, "Recipe"):
        section = setting.type.partition(".")[0]
        if setting.key == "method":
            found += of_method(method)
        elif section in classes(where := imported(MODEL, section)):
            found += _inside(setting.key, section, where)
        else:
            found.append(replace(setting, choices=setting.choices or _listed(setting.key)))
    return found


def of_method(name: str | None) -> list[Setting]:
    """`method.name` and the settings of that method, inherited ones last."""
    default = str(constant(MODEL, "DEFAULT_METHOD"))
    known = (*methods(), *plugged("method"))
    chosen = Setting("method.name", "text", default, "the method; `raysurl recipes` lists all", known)
    path = next((p for p in _method_files() if _name_of(p) == (name or default)), None) or _plugged_file(name)
    return [chosen] if path is None else [chosen, *_of_config(path, "Config", "method")]


def _plugged_file(name: str | None) -> Path | None:
    """The text of a method from outside the package; None where there is none."""
    try:
        path = plugins.source("method", name) if name else None
        return path if path and "Config" in classes(path) else None
    except (InputError, OSError, ValueError, SyntaxError):
        return None


def described(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(tree(path)) or "").partition("\n")[0]


def of_methods() -> dict[str, str]:
    """Method -> what it is and its paper."""
    return {_name_of(p): described(p) for p in _method_files()}


def about_command(name: str) -> tuple[str, str]:
    """The docstrings of the command's module, and of its `main`."""
    parsed = tree(PACKAGE / "commands" / f"{name}.py")
    function = next(node for node in parsed.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    return ast.get_docstring(parsed) or "", ast.get_docstring(function) or ""


# -------------------------------------------------------------------- one by one


def _name_of(path: Path) -> str:
    """Of a method: its module's, or its package's."""
    return path.parent.name if path.stem == "method" else path.stem


def _method_files() -> list[Path]:
    root = PACKAGE / "methods"
    loose = [p for p in root.glob("*.py") if p.stem != "__init__"]
    return sorted([*loose, *root.glob("*/method.py")], key=_name_of)


def _inside(key: str, section: str, path: Path) -> Iterator[Setting]:
    """A section's settings under its key, deeper sections and the policies of views included."""
    for setting in fields(path, section):
        named = replace(setting, key=f"{key}.{setting.key}")
        inside = path if setting.type in classes(path) else imported(path, setting.type)
        if setting.type in classes(inside):
            yield from _inside(named.key, setting.type, inside)
            continue
        yield replace(named, choices=named.choices or _listed(named.key))
        if named.key == "views.policies":
            yield from (replace(s, key=f"views.policies.VIEW.{s.key}") for s in fields(POLICIES, "Policy"))


def _of_config(path: Path, name: str, key: str) -> Iterator[Setting]:
    """The fields of a Config, then those of the bases and those of the sections that the package defines."""
    config = classes(path).get(name)
    if config is None:
        return
    for setting in fields(path, name):
        inside = imported(path, setting.type)
        if setting.type in classes(inside):
            yield from _of_config(inside, setting.type, f"{key}.{setting.key}")
        else:
            about = setting.about or WORDS.get(setting.key, "")
            yield replace(setting, key=f"{key}.{setting.key}", about=about)
    for base in config.bases:
        known = ast.unparse(base).rpartition(".")[2]
        if known not in ("Config", "Section", "MethodConfig", "BaseModel"):
            yield from _of_config(path if known in classes(path) else imported(path, known), known, key)


def _words(kind: str) -> tuple[str, ...]:
    """The values of a type that is written as a choice of words."""
    parts = tuple(kind.split(" | "))
    return parts if len(parts) > 1 and all(re.fullmatch(r"[a-z._]+", part) for part in parts) else ()


def _listed(key: str) -> tuple[str, ...]:
    """What can be listed of a setting that is text."""
    lists: dict[str, Callable[[], tuple[str, ...]]] = {
        "recipe": recipes,
        "space": spaces,
        "method.name": lambda: (*methods(), *plugged("method")),
        "data.name": lambda: (*data_sources(), *plugged("data")),
    }
    return lists[key]() if key in lists else ()
