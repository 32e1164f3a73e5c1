"""What a search space varies: one axis, its values, their labels and the settings that they stand for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import Field

from raysurl.errors import InputError
from raysurl.recipe import Recipe
from raysurl.recipe.schema import Section

if TYPE_CHECKING:
    from raysurl.sweep.space import Space

Settings = dict[str, Any]  # dotted recipe key -> value


class Axis(Section):
    """One thing that is varied. A plain list in the file is `grid`.

    `grid` or `choice`: values, or label -> value, or, where the axis is no recipe key, label -> {recipe key: value}.
    `when`: axis -> the labels with which this axis is active; elsewhere it is not set.
    """

    key: str | None = None  # the recipe key, where the axis has another name
    grid: list[Any] | dict[str, Any] | None = None
    choice: list[Any] | dict[str, Any] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    when: dict[str, list[str]] = Field({})

    @property
    def values(self) -> list[Any] | dict[str, Any] | None:
        return self.grid if self.grid is not None else self.choice

    @property
    def range(self) -> tuple[float, float] | None:
        return self.uniform or self.loguniform or self.integer


def check_axis(name: str, axis: Axis, space: Space) -> None:
    """Raises ValueError for what no grid or search can vary."""
    kinds = [
        k for k in ("grid", "choice", "uniform", "loguniform", "integer") if getattr(axis, k) is not None
    ]
    if len(kinds) != 1:
        raise ValueError(f"axis {name} needs exactly one of grid, choice, uniform, loguniform, integer")
    if axis.values is not None and not axis.values:
        raise ValueError(f"axis {name} is empty; give it at least one value or leave it out")
    if axis.range and not (axis.range[0] < axis.range[1] and (not axis.loguniform or axis.range[0] > 0)):
        raise ValueError(
            f"axis {name}: {kinds[0]} needs (low, high) with low < high, and low > 0 for loguniform"
        )
    if axis.range and space.search == "grid":
        raise ValueError(f"axis {name}: {kinds[0]} has no grid; give values, or search: optuna")
    if axis.range and key_of(name, axis) is None:
        raise ValueError(f"axis {name}: {kinds[0]} needs the recipe key it sets, key: …")
    if len(set(labels_of(axis))) < len(labels_of(axis)):
        raise ValueError(f"axis {name} names a value twice")
    before = list(space.axes)[: list(space.axes).index(name)]
    for other, labels in axis.when.items():
        if other not in before:
            raise ValueError(f"axis {name}: when names {other}, which is not an axis before it")
        known = labels_of(space.axes[other])
        if wrong := [label for label in labels if known and label not in known]:
            raise ValueError(f"axis {name}: when names {other}={wrong[0]}; it has {', '.join(known)}")


def key_of(name: str, axis: Axis) -> str | None:
    """The recipe key that an axis sets; None for an axis of bundles."""
    return axis.key or (name if "." in name or name in Recipe.model_fields else None)


def text(value: Any) -> str:
    """The label of a value, as it is written in a file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def labels_of(axis: Axis) -> list[str]:
    return [text(v) for v in axis.values or ()]  # of a mapping: its keys


def settings_of(name: str, axis: Axis, label: str) -> Settings:
    """What a label of a finite axis sets. Raises InputError where a bundle is no mapping."""
    return as_settings(name, axis, label, value_of(axis, label))


def as_settings(name: str, axis: Axis, label: str, value: Any) -> Settings:
    key = key_of(name, axis)
    if key is not None:
        return {key: value}
    if not isinstance(value, dict):
        raise InputError(
            f"axis {name} is not a recipe key, so {label} must be a mapping of recipe keys to values (or name the key"
            " it sets, key: …)"
        )
    return value


def value_of(axis: Axis, label: str) -> Any:
    """What the file has for a label of a finite axis."""
    values = axis.values or []
    return values[label] if isinstance(values, dict) else next(v for v in values if text(v) == label)
