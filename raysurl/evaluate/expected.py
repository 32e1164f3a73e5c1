"""The metrics that a run will have, known before it starts: what a sweep may ask for."""

from __future__ import annotations

from raysurl import health
from raysurl.evaluate import Division, names, of_pixels, prefixed
from raysurl.evaluate.augmenting import aligned_names
from raysurl.recipe import Recipe


def final_names(recipe: Recipe, division: Division) -> set[str]:
    """The metrics of a finished run on data divided so."""
    settings, labelled = recipe.eval, bool(len(division.test))
    found = {"train/loss", *health.SIGNALS, *names(settings.protocols, settings, division)}
    found |= aligned_names(recipe)
    if recipe.eval.features != "backbone" and labelled:
        knn = names(["knn"], settings, division)
        found |= knn | {prefixed(name, "backbone") for name in knn}
    if settings.baselines:
        asked = names(settings.protocols, settings, division)
        found |= {prefixed(name, "untrained") for name in asked}
        raw = names(of_pixels(settings.protocols), settings, division) if labelled else set()
        found |= {prefixed(name, "pixels") for name in raw}
    return found


def online_names(recipe: Recipe, division: Division) -> set[str]:
    """The metrics of an evaluation during training."""
    return {"train/loss", *health.SIGNALS, *aligned_names(recipe), *names(["knn"], recipe.eval, division)}
