"""Warm-ups of a shortened run: what a recipe begins with stays the same share of it."""

from __future__ import annotations

from typing import Any

from raysurl.recipe.method_config import MethodConfig
from raysurl.recipe.model import Recipe

SUFFIX = "warmup_epochs"  # of the settings that count epochs from the run's start


def shortened(recipe: Recipe, before: int, *, keep: frozenset[str] = frozenset()) -> Recipe:
    """The recipe whose warm-ups are of `before` epochs, with warm-ups for its own, fewer ones.

    A longer run keeps them, as the papers' do. `keep`: dotted keys that somebody has set for this length.
    """
    share = recipe.train.epochs / before
    if share >= 1:
        return recipe
    schedule, train = recipe.train.schedule, recipe.train
    if "train.schedule.warmup_epochs" not in keep:
        schedule = schedule.model_copy(update={SUFFIX: round(share * schedule.warmup_epochs, 4)})
    method = recipe.method.model_copy(update=_of_method(recipe.method, share, keep))
    return recipe.model_copy(
        update={"train": train.model_copy(update={"schedule": schedule}), "method": method}
    )


def _of_method(method: MethodConfig, share: float, keep: frozenset[str]) -> dict[str, Any]:
    found = {}
    for name, field in type(method).model_fields.items():
        if name.endswith(SUFFIX) and f"method.{name}" not in keep:
            digits = None if field.annotation is int else 4
            found[name] = round(share * getattr(method, name), digits)
    return found
