"""The recipes of a space's cells without the data and teachers that they need: what `--print` shows."""

from __future__ import annotations

from collections.abc import Mapping

from raysurl.data.known import known_of, width_of
from raysurl.errors import InputError
from raysurl.recipe import Recipe
from raysurl.sweep.cells import Cell, recipe_of
from raysurl.sweep.space import Space

ROOT = "data_root"  # where a path goes on from what the command does not name
TEACHER = "teacher.name"  # stands for the teacher that the command does not name


def listed_recipe(
    space: Space, cell: Cell, seed: int, overrides: Mapping[str, str], root: str | None
) -> Recipe:
    """A cell's whole recipe, with what the data are known to be. Raises InputError where the recipe, or data of that
    size, refuse it."""
    try:
        recipe = recipe_of(space, cell, seed, overrides, root or ROOT)
    except InputError:
        if "teacher.name" in overrides:
            raise
        try:
            recipe = recipe_of(space, cell, seed, {**overrides, "teacher.name": TEACHER}, root or ROOT)
        except InputError:
            recipe = recipe_of(
                space, cell, seed, overrides, root or ROOT
            )  # the first reason is the better one
    known = known_of(recipe.data, recipe.recipe)
    if known is None:
        return recipe
    if recipe.train.batch_size > known.samples:
        raise InputError(
            f"train.batch_size={recipe.train.batch_size} is larger than the data, {known.samples} samples"
        )
    if recipe.data.name.startswith("planetoid:"):
        return _with_inputs(recipe, width_of(known, recipe.data))  # a graph's own check reads its edges
    recipe.method.check(known.samples)
    return _with_inputs(recipe, width_of(known, recipe.data))


def _with_inputs(recipe: Recipe, width: int | None) -> Recipe:
    if width is None or recipe.encoder.name != "mlp":
        return recipe
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"inputs": width})})
