"""Definitions as they stand in the text of the package's modules: fields with their remarks, constants, docstrings.

Nothing is imported, so that what is asked of them is answered at once.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent

_PLAIN = {
    "Policy": "policy",
    "Elsewhere": "data and protocols",
    "Option": "value",
    "int": "whole number",
    "float": "number",
    "bool": "true | false",
    "str": "text",
    "None": "none",
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """`about`: one line; `choices`: its values, where they can be listed."""

    key: str
    type: str
    default: str
    about: str
    choices: tuple[str, ...] = ()


def imported(path: Path, name: str) -> Path:
    """The module of the package that a name is imported from; `path` itself where it is not."""
    for node in tree(path).body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{PACKAGE.name}."):
            found = PACKAGE.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")
            if any(alias.name == name for alias in node.names) and found.is_file():
                return found
    return path


def fields(path: Path, name: str) -> Iterator[Setting]:
    """The settings that a class defines."""
    remarks = _remarks(path)
    for node in classes(path)[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if ast.unparse(node.annotation).startswith("ClassVar"):
                continue
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            about = " ".join(remarks[line] for line in lines if line in remarks)
            default, bounds = _default(_resolved(node.value, path))
            kind, choices = _kind(node.annotation, path)
            about = about.replace("None:", "none:")
            yield Setting(node.target.id, _bounded(kind, bounds), default, about, choices)


def _default(value: ast.expr | None) -> tuple[str, list[str]]:
    """A default as it would be typed, and the bounds that a Field states."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("Field"):
        given = {k.arg: k.value for k in value.keywords if k.arg}
        inner = value.args[0] if value.args else given.get("default")
        bounds = [f"{sign} {_typed(given[word])}" for word, sign in _BOUNDS.items() if word in given]
        return _default(inner)[0], bounds
    return ("" if value is None else _typed(value)), []


def _resolved(value: ast.expr | None, path: Path) -> ast.expr | None:
    """What a default that is a constant's name stands for, of this module or of one of the package."""
    if isinstance(value, ast.Name):
        found = (_assigned(where, value.id) for where in (path, imported(path, value.id)))
        return next((known for known in found if known is not None), value)
    return value


def _bounded(kind: str, bounds: list[str]) -> str:
    return f"{kind} {', '.join(bounds)}" if bounds else kind


def _typed(value: ast.expr) -> str:
    try:
        found = ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)
    return _text(found)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    return "none" if value is None else str(value)


def _kind(annotation: ast.expr, path: Path) -> tuple[str, tuple[str, ...]]:
    """A type in words, and its values where these can be listed."""
    if isinstance(annotation, ast.BinOp):
        parts = [_kind(side, path) for side in (annotation.left, annotation.right)]
        kinds = [kind for kind, _ in parts if kind != "none"]
        return " | ".join(kinds), tuple(value for _, values in parts for value in values)
    if isinstance(annotation, ast.Subscript):
        return _generic(ast.unparse(annotation.value), annotation.slice, path)
    name = ast.unparse(annotation)
    for where in (path, imported(path, name)):
        if name in _aliases(where):
            return _kind(_aliases(where)[name], where)
    return _PLAIN.get(name, name), (("true", "false") if name == "bool" else ())


def _generic(name: str, inside: ast.expr, path: Path) -> tuple[str, tuple[str, ...]]:
    parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    if name == "Literal":
        values = tuple(_typed(part) for part in parts)
        return " | ".join(values), values
    if name == "Annotated":
        kind, choices = _kind(parts[0], path)
        return _bounded(kind, _default(parts[1])[1]), choices
    if name in ("tuple", "list", "Sequence"):
        kinds = [_kind(part, path)[0] for part in parts if ast.unparse(part) != "..."]
        return (f"[{kinds[0]}, …]" if len(kinds) < len(parts) else f"[{', '.join(kinds)}]"), ()
    if name == "dict":
        return f"{_kind(parts[1], path)[0]} by name", ()
    return f"{name}[{ast.unparse(inside)}]", ()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def classes(path: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)}


@cache
def _aliases(path: Path) -> dict[str, ast.expr]:
    """Names of types that a module gives."""
    assigned = [node for node in tree(path).body if isinstance(node, ast.Assign)]
    return {ast.unparse(n.targets[0]): n.value for n in assigned if isinstance(n.value, ast.Subscript)}


@cache
def _remarks(path: Path) -> dict[int, str]:
    """Line -> the comment that ends it."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokens
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
    }


def constant(path: Path, name: str) -> Any:
    """The value of a module's constant that is written out; None where it has none."""
    value = _assigned(path, name)
    return None if value is None else ast.literal_eval(value)


def _assigned(path: Path, name: str) -> ast.expr | None:
    """What stands behind `name =` or `name: type =` in a module."""
    for node in tree(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        if isinstance(node, ast.Assign | ast.AnnAssign) and ast.unparse(targets[0]) == name:
            return node.value
    return None
