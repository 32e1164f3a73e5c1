"""Evaluation of features that stay as they are: each protocol is one module with a function `run`.

`run(features, settings, *, seed)` yields (metric name, value); accuracies are in percent. NEEDS_LABELS says
whether a protocol can do without labels. `check(division, settings)`, where a module has one, raises InputError for
what it could not do with the data. A further protocol is a further module and its name in the recipe.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from raysurl.evaluate.division import Division, divide
from raysurl.evaluate.features import Features, Nodes, evenly_spaced, pixel_features
from raysurl.evaluate.knn import knn_classify
from raysurl.recipe import Evaluation

__all__ = [
    "Division",
    "Features",
    "Nodes",
    "check",
    "divide",
    "evaluate",
    "evenly_spaced",
    "knn_classify",
    "pixel_features",
    "prefixed",
]


def check(division: Division, settings: Evaluation) -> None:
    """Raises InputError for a protocol of the settings that cannot be run on data divided so."""
    for protocol in settings.protocols:
        module = importlib.import_module(f"raysurl.evaluate.{protocol}")
        if hasattr(module, "check") and (len(division.test) or not module.NEEDS_LABELS):
            module.check(division, settings)


def evaluate(
    features: Features,
    settings: Evaluation,
    *,
    protocols: Sequence[str] | None = None,
    prefix: str = "",
    seed: int = 0,
) -> dict[str, float]:
    """Run protocols, `settings.protocols` unless given, and collect metric name -> value.

    With `prefix="untrained"` the metric `eval/knn_top1` becomes `eval/untrained_knn_top1`. Protocols that
    need labels see the labelled samples only, and are left out if the train or the test part has none.
    """
    metrics: dict[str, float] = {}
    labelled = features.labelled() if features.has_labels else None
    for protocol in settings.protocols if protocols is None else protocols:
        module = importlib.import_module(f"raysurl.evaluate.{protocol}")
        given = labelled if module.NEEDS_LABELS else features
        if given is not None:
            metrics.update(
                (prefixed(name, prefix), value) for name, value in module.run(given, settings, seed=seed)
            )
    return metrics


def prefixed(name: str, prefix: str) -> str:
    """`eval/knn_top1` and `pixels` -> `eval/pixels_knn_top1`; an empty prefix changes nothing."""
    group, _, rest = name.partition("/")
    return f"{group}/{prefix}_{rest}" if prefix else name
