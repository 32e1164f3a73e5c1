"""Settings that are valid and do not suit the data: a line each, with the value that would."""

from __future__ import annotations

import numpy as np

from raysurl.encoder import published_pixels
from raysurl.evaluate import Division, needs
from raysurl.recipe import Recipe

SHARE = 0.1  # of the samples that a batch should have at most
WARM = 0.05  # of a run, its usual warm-up
HELD = ("queue_size", "memory_size")  # settings of methods that count keys of samples
NEIGHBOURS = (200, 100, 50, 20, 10, 5, 2, 1)


def remarks(recipe: Recipe, count: int, division: Division) -> list[str]:
    """Of a run on `count` samples. Advice only: nothing is changed."""
    return [
        *_warm_up(recipe),
        *_batch(recipe, count),
        *_queue(recipe, count),
        *_neighbours(recipe, division),
        *_pixels(recipe),
    ]


def _warm_up(recipe: Recipe) -> list[str]:
    schedule, epochs = recipe.train.schedule, recipe.train.epochs
    period = epochs if schedule.period == "round" else recipe.total_epochs
    found = []
    if schedule.name != "constant" and schedule.warmup_epochs >= period:
        found.append(
            ("train.schedule.warmup_epochs", schedule.warmup_epochs, period, "the learning rate only rises")
        )
    for name in type(recipe.method).model_fields:
        value = getattr(recipe.method, name)
        if name.endswith("warmup_epochs") and value >= recipe.total_epochs:
            found.append((f"method.{name}", value, recipe.total_epochs, "what follows it never begins"))
    return [
        f"{key}={value:g} is not shorter than the {length} epochs of the run, so that {why};"
        f" {key}={_fitting(value, length)} fits"
        for key, value, length, why in found
    ]


def _fitting(value: float, epochs: int) -> str:
    fits = WARM * epochs
    return f"{round(fits)}" if isinstance(value, int) else f"{fits:g}"


def fitting_batch(recipe: Recipe, count: int) -> int | None:
    """A batch that suits so many samples; None where the recipe's does, or takes points or nodes, all at once."""
    if recipe.train.batch_size <= SHARE * count or recipe.encoder.name == "mlp":
        return None
    return _power_of_two(max(SHARE * count, 2))


def fitting_memory(recipe: Recipe, count: int) -> dict[str, int]:
    """Settings of the method that hold more keys than there are samples, with what would fit."""
    held = {name: getattr(recipe.method, name, None) or 0 for name in HELD}
    return {name: _power_of_two(count) for name, size in held.items() if size > count}


def _batch(recipe: Recipe, count: int) -> list[str]:
    batch, fits = recipe.train.batch_size, fitting_batch(recipe, count)
    if fits is None:
        return []
    steps = count // batch
    return [
        f"train.batch_size={batch} is more than a tenth of the {count:,} samples, so that an epoch has"
        f" {steps} step{'s' if steps > 1 else ''}; train.batch_size={fits} fits"
    ]


def _queue(recipe: Recipe, count: int) -> list[str]:
    return [
        f"method.{name}={getattr(recipe.method, name)} is more than the {count:,} samples, so that a sample's own older"
        f" keys count as others; method.{name}={fits} fits"
        for name, fits in fitting_memory(recipe, count).items()
    ]


def _neighbours(recipe: Recipe, division: Division) -> list[str]:
    labelled = (
        "labels" in needs(*recipe.eval.protocols) and division.labels is not None and len(division.test)
    )
    if "knn" not in recipe.eval.protocols or not labelled:
        return []
    assert division.labels is not None
    sizes = np.bincount(division.labels[division.bank])
    typical = int(np.median(sizes[sizes > 0]))
    over = [k for k in recipe.eval.knn_k if k > typical]
    if not over:
        return []
    fits = next(k for k in NEIGHBOURS if k <= typical)
    kept = [k for k in recipe.eval.knn_k if k != fits]
    return [
        f"eval.knn_k: a class has about {typical} samples to be found among, so that k = {over[0]} counts other"
        f" classes too; k = {fits} fits, eval.knn_k=[{', '.join(map(str, [*kept, fits]))}]"
    ]


def _pixels(recipe: Recipe) -> list[str]:
    """Where weights of a library are taken that were trained on pixels normalised otherwise."""
    v, published = recipe.views, published_pixels(recipe)
    if published is None or published == (v.mean, v.std):
        return []
    mean, std = (list(values) for values in published)
    return [
        f"init_from={recipe.init_from}: published weights of {recipe.encoder.name} are of pixels with mean {mean} and"
        f" standard deviation {std}; views.mean={mean} views.std={std} fits, if the file holds those"
    ]


def _power_of_two(at_most: float) -> int:
    return 1 << (int(at_most).bit_length() - 1)
