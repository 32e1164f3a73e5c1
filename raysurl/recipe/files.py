"""YAML files: recipes, the bases they share, and any other mapping that a person writes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from raysurl.errors import InputError
from raysurl.paths import given_path

BASES = "bases"  # of the packaged recipes: what they share, by data set
DEEPEST, MOST_NODES = 40, 100_000  # of a YAML file, aliases counted as what they stand for
LONGEST = 1000  # characters of a whole number; Python prints none of more than 4,300 digits


def read_recipe_file(name: str) -> dict[str, Any]:
    """A packaged recipe by name, or a YAML file: what it differs in, upon what its `base` differs in."""
    path = given_path("recipe", name)
    packaged = _root() / given_path("recipe", f"{name}.yaml")
    if packaged.is_file():
        path = packaged
    elif not (path.suffix in {".yaml", ".yml"} and path.is_file()):
        known = packaged_recipes()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"recipe={name} is neither a YAML file nor one of {', '.join(known)}{hint}")
    return with_base(read_mapping(path, f"recipe={name}", "recipe keys"), f"recipe={name}", _root())


def with_base(tree: dict[str, Any], named: str, root: Path) -> dict[str, Any]:
    """`base: cifar10` of a file begins with one of root/bases, or with another file of `root`. Raises InputError."""
    base = tree.pop("base", None)
    if base is None:
        return tree
    given_path(f"{named}: base", f"{base}.yaml")
    found = [root / BASES / f"{base}.yaml", root / f"{base}.yaml"]
    path = next((p for p in found if p.is_file()), None)
    if path is None:
        bases = ", ".join(sorted(p.stem for p in (root / BASES).glob("*.yaml")))
        raise InputError(f"{named}: base={base} is neither a file of {root.name} nor one of {bases}")
    under = with_base(read_mapping(path, f"base={base}", "the keys that it stands for"), f"base={base}", root)
    merge(under, tree)
    return under


def packaged_recipes() -> list[str]:
    files = [p.relative_to(_root()) for p in _root().rglob("*.yaml")]
    return sorted(str(p.with_suffix("")) for p in files if p.parts[0] != BASES)


def _root() -> Path:
    return Path(str(resources.files("raysurl") / "recipes"))


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    """Merge `changes` into `tree` in place, mapping by mapping."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = value


def read_stored(run_dir: Path) -> dict[str, Any]:
    """What `recipe.yaml` of a run directory says; of a run that is older than the setting, streams=1."""
    path = run_dir / "recipe.yaml"
    stored = read_mapping(path, str(path), "recipe keys")
    if not stored:
        raise InputError(
            f"{path} is empty: what the run was is lost; put its recipe back there, or begin another run"
        )
    return {"streams": 1, **stored}


# -------------------------------------------------------------------- YAML


def read_mapping(path: Path, named: str, of: str) -> dict[str, Any]:
    """The mapping in a YAML file, an empty file being an empty one. Raises InputError, which calls the file `named`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # not there, or not text
        raise InputError(f"{named} cannot be read as text: {str(error).splitlines()[0]}") from None
    tree = parse_yaml(text, named)
    if tree is not None and not isinstance(tree, dict):
        raise InputError(f"{named} must hold a mapping of {of}")
    return tree or {}


def parse_yaml(text: str, named: str) -> Any:
    """Plain values of a YAML text. Raises InputError, which calls the text `named`: not YAML, a key given twice, a
    tag that names a type, or more than a person writes."""
    try:
        _check_plain(yaml.parse(text, _Loader))
        return yaml.load(text, _PlainLoader)
    except _RefusedError as error:
        raise InputError(f"{named}: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{named} is not valid YAML: {error.problem or error.context}{line}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{named} is not valid YAML: {str(error).splitlines()[0]}") from None


class _RefusedError(Exception):
    """Valid YAML that no recipe needs."""


def _check_plain(events: Iterable[Any]) -> None:
    """Raises _RefusedError for tags, and for trees that are deep, hold themselves or grow by aliases; before any is
    composed."""
    # of nodes that are open: the anchor, and how many values stood before
    begun: list[tuple[str | None, int]] = []
    # anchor -> values; None while the node is open
    sizes: dict[str | None, int | None] = {}
    values = 0
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            sizes[anchor] = values - before
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 0)  # one that stands for nothing is refused when it is composed
            if size is None:
                raise _RefusedError("a value holds itself; no recipe's does")
            values += size
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.tag not in {None, "!"}:
                start: Any = event.start_mark
                raise _RefusedError(
                    f"line {start.line + 1} has the tag {event.tag}; give plain values without tags"
                )
            if event.anchor and event.anchor in sizes:
                raise _RefusedError(f"the anchor &{event.anchor} is given twice; keep one")
            sizes[event.anchor] = 1
            if isinstance(event, yaml.CollectionStartEvent):
                begun.append((event.anchor, values))
                sizes[event.anchor] = None
            values += 1
        if len(begun) > DEEPEST:
            raise _RefusedError(f"it is nested more than {DEEPEST} deep; no recipe is")
        if values > MOST_NODES:
            raise _RefusedError(f"it unfolds to more than {MOST_NODES:,} values; no recipe does")


# libyaml's where it is there: six times as fast, the check included
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


# which YAML 1.1 takes for octal, and job arrays put before their numbers
_LEADING_ZERO = re.compile("[-+]?0[0-9]+")


class _PlainLoader(_Loader):
    """PyYAML's safe loader, without keys given twice, octal numbers, and numbers that cannot be shown."""

    def whole_number(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > LONGEST:
            line = node.start_mark.line + 1
            raise _RefusedError(f"line {line} has a number of {len(node.value):,} digits; no recipe has one")
        if _LEADING_ZERO.fullmatch(text := node.value.replace("_", "")):
            return int(text)
        self.check_base(node)
        number: int = self.construct_yaml_int(node)
        return number

    def number(self, node: yaml.ScalarNode) -> float:
        self.check_base(node)
        number: float = self.construct_yaml_float(node)
        return number

    def check_base(self, node: yaml.ScalarNode) -> None:
        """YAML 1.1 takes 1:30 for ninety."""
        if ":" in node.value:
            line = node.start_mark.line + 1
            raise _RefusedError(f"line {line} has {node.value}, a number to base 60; write it to base 10")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in lines:
                    raise _RefusedError(
                        f"the key {key.value} is given twice, in lines {lines[key.value]} and {line}; keep one"
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep=deep)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.whole_number)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.number)
