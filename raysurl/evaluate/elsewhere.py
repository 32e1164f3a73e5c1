"""A run that is judged by other data too, as `eval.elsewhere` says: `eval/svm_map` there is `eval/voc07_svm_map` here.

Each worker opens those data by itself, when its training has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from raysurl.data.names import Samples, open_samples
from raysurl.data.source import open_source
from raysurl.errors import InputError
from raysurl.evaluate import Division, names, prefixed
from raysurl.evaluate.evaluator import Evaluated, Evaluator, Networks
from raysurl.recipe import Recipe

Splits = tuple[Samples, Samples | None]


def recipe_at(recipe: Recipe, name: str) -> Recipe:
    """The recipe of an evaluation on those data: of the backbone, without further ones."""
    place = recipe.eval.elsewhere[name]
    given = {"protocols": place.protocols, "features": "backbone", "elsewhere": {}}
    changes = {"data": place.data, "eval": recipe.eval.model_copy(update=given)}
    if place.size is not None:
        changes["views"] = recipe.views.model_copy(update={"size": place.size})
    return recipe.model_copy(update=changes)


def opened(recipe: Recipe) -> Iterator[tuple[str, Recipe, Splits]]:
    """Name, recipe, and the samples that are listed there. Raises InputError."""
    for name in recipe.eval.elsewhere:
        there = recipe_at(recipe, name)
        try:
            train, test = (
                open_samples(there.data, split, seed=recipe.stream_seed) for split in ("train", "eval")
            )
        except InputError as error:
            raise InputError(f"eval.elsewhere.{name}: {error}") from None
        assert train is not None
        yield name, there, (train, test)


def final_names_at(recipe: Recipe, divisions: Mapping[str, Division]) -> set[str]:
    """The metrics of a finished run by other data, which are divided so."""
    found = set()
    for place, division in divisions.items():
        there = recipe_at(recipe, place).eval
        asked = [name for name in names(there.protocols, there, division) if name.startswith("eval/")]
        untrained = [prefixed(name, "untrained") for name in asked] if there.baselines else []
        found |= {prefixed(name, place) for name in [*asked, *untrained]}
    return found


def judged(
    evaluator: Evaluator, networks: Networks, untrained_embedder: nn.Module | None = None
) -> Evaluated:
    """The final evaluation, by the data of the run and by all others. Every rank calls it."""
    found = evaluator.final(networks, untrained_embedder)
    metrics, gains = dict(found.metrics), dict(found.gains)
    for name, there, samples in opened(evaluator.recipe):
        source, test_source = (None if s is None else open_source(s, there.data) for s in samples)
        assert source is not None
        judge = Evaluator(there, evaluator.runtime, source, test_source, evaluator.unfinished)
        other = judge.final(Networks(networks.encoder))
        metrics |= {
            prefixed(key, name): value for key, value in other.metrics.items() if key.startswith("eval/")
        }
        gains |= {prefixed(key, name): value for key, value in other.gains.items() if key.startswith("eval/")}
    return replace(found, metrics=metrics, gains=gains)
