"""The paper's numbers of a space: which cell has which."""

from __future__ import annotations

import contextlib
import math
import reprlib
from typing import Any

from raysurl.errors import InputError
from raysurl.recipe import nearest
from raysurl.sweep.axis import labels_of
from raysurl.sweep.space import INACTIVE, Space


def paper_numbers(space: Space) -> dict[tuple[str, ...], float]:
    """Labels in the order of the axes -> the paper's number. Raises InputError for a cell that does not exist."""
    return _numbers(space, space.paper)


def paper_seconds(space: Space) -> dict[tuple[str, ...], float]:
    """The same for the paper's seconds per epoch."""
    return _numbers(space, space.epoch_seconds.paper) if space.epoch_seconds else {}


def _numbers(space: Space, numbers: Any) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    _collect(space, numbers, (), found)
    return found


def _number(given: Any, what: str) -> float:
    """Raises InputError for what is no number, or none that fp64 holds."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(given):
                return float(given)
    raise InputError(f"{what} is {reprlib.repr(given)}, not a finite number")


def _collect(space: Space, node: Any, at: tuple[str, ...], found: dict[tuple[str, ...], float]) -> None:
    names = list(space.axes)
    where = ", ".join(f"{n}={label}" for n, label in zip(names, at, strict=False)) or "the top"
    if len(at) == len(names):
        if node is not None:
            found[at] = _number(node, f"space {space.name}: the paper's value at {where}")
        return
    name = names[len(at)]
    labels = [*labels_of(space.axes[name]), *([INACTIVE] if space.axes[name].when else [])]
    if isinstance(node, list):
        if len(node) != len(labels_of(space.axes[name])):
            raise InputError(
                f"space {space.name}: the paper has {len(node)} numbers at {where} and axis {name} has"
                f" {len(labels_of(space.axes[name]))} values"
            )
        node = dict(zip(labels, node, strict=False))
    if not isinstance(node, dict):
        raise InputError(
            f"space {space.name}: the paper's values at {where} must be a list or mapping over {name}"
        )
    for label, inner in node.items():
        if label not in labels:
            raise InputError(
                f"space {space.name}: the paper has a number for {name}={label}, a cell that does not exist;"
                f" {nearest(label, labels, 'its values are')}"
            )
        _collect(space, inner, (*at, label), found)
