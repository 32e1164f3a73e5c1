"""Evaluation of features that stay as they are: each protocol is one module with a function `run`.

`run(features, settings, *, seed)` yields (metric name, value); accuracies are in percent and carry their interval
(raysurl.intervals.Measured). `names(settings, division)` lists the metrics. NEEDS names what it asks of the data:
labels; tags, of samples that show several classes at once; targets, labels or tags; inputs, the raw values of some
samples; nodes, all labelled samples, which it divides itself; instances, the objects in each image; augmented, random
views of the train images where its settings say so. OF_PIXELS says whether raw pixels are its baseline.
`check(division, settings)`, where a module has one, raises InputError for what it could not do with the data. A further
protocol is a further module and its name in the recipe, or from outside the package (raysurl.evaluate.plugged).
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from raysurl import intervals
from raysurl.evaluate.division import SEEN, Division, divide
from raysurl.evaluate.features import Features, NodeFeatures, pixel_features
from raysurl.evaluate.knn import knn_classify
from raysurl.evaluate.plugged import plugged
from raysurl.recipe import Evaluation
from raysurl.recipe.evaluation import PROTOCOLS

__all__ = [
    "SEEN",
    "Division",
    "Features",
    "Gains",
    "NodeFeatures",
    "check",
    "divide",
    "evaluate",
    "gains_of",
    "knn_classify",
    "names",
    "needs",
    "of_pixels",
    "pixel_features",
    "prefixed",
    "serves",
]


TARGETS = {"labels", "tags", "targets"}  # what a protocol may judge by


def needs(*protocols: str) -> frozenset[str]:
    """What the protocols ask of the data, together."""
    return frozenset().union(*(_module(name).NEEDS for name in protocols))


def of_pixels(protocols: Sequence[str]) -> list[str]:
    """Those of the protocols of which raw pixels are a baseline."""
    return [name for name in protocols if _module(name).OF_PIXELS]


def serves(division: Division, asked: Collection[str]) -> bool:
    """Whether data divided so have the labels or tags that a protocol asks for."""
    if not TARGETS & set(asked):
        return True
    return len(division.test) > 0 and ("labels" if division.num_tags else "tags") not in asked


def names(protocols: Sequence[str], settings: Evaluation, division: Division) -> set[str]:
    """The metrics that protocols yield on data divided so: `names` of each of their modules."""
    modules = [_module(p) for p in protocols]
    served = [m for m in modules if serves(division, m.NEEDS)]
    return {name for module in served for name in module.names(settings, division)}


def _module(protocol: str) -> Any:
    if protocol in PROTOCOLS:
        return importlib.import_module(f"{__name__}.{protocol}")
    return plugged(protocol)


def check(division: Division, settings: Evaluation) -> None:
    """Raises InputError for a protocol of the settings that cannot be run on data divided so."""
    for protocol in settings.protocols:
        module = _module(protocol)
        if hasattr(module, "check") and serves(division, module.NEEDS):
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
    need labels see the labelled samples only, and are left out if the train or the test part has none; tags likewise.
    """
    metrics: dict[str, float] = {}
    labelled = features.labelled() if features.has_labels else None
    for protocol in settings.protocols if protocols is None else protocols:
        module = _module(protocol)
        given = _given(features, labelled, module.NEEDS)
        if given is not None:
            metrics.update(
                (prefixed(name, prefix), value) for name, value in module.run(given, settings, seed=seed)
            )
    return metrics


def _given(features: Features, labelled: Features | None, asked: Collection[str]) -> Features | None:
    if not TARGETS & set(asked):
        return features
    if features.tags and "labels" not in asked:
        return features
    return None if "tags" in asked else labelled


Gains = dict[str, dict[str, list[float]]]
"""Metric -> baseline -> [points by which the metric exceeds that baseline's, low, high]."""

BASELINES = ("untrained", "pixels")


def gains_of(metrics: Mapping[str, float]) -> Gains:
    """Of each accuracy over the same accuracy of each baseline, judged on the same test samples."""
    found = {
        name: intervals.gains(metrics, name, {b: prefixed(name, b) for b in BASELINES}) for name in metrics
    }
    return {name: over for name, over in found.items() if over}


def prefixed(name: str, prefix: str) -> str:
    """`eval/knn_top1` and `pixels` -> `eval/pixels_knn_top1`; an empty prefix changes nothing."""
    group, _, rest = name.partition("/")
    return f"{group}/{prefix}_{rest}" if prefix else name
