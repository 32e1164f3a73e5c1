"""How the neighbours of an image stay when the image is augmented (ReSSL, Fig. 2).

The figure shows the ten nearest neighbours of queries under weak and under contrastive augmentation, and frames those
of another class: the weak ones are right more often, which is why the teacher sees weak views. Here test images are the
queries and train images the gallery. For each policy of `eval.neighbours_views`: the share of the k nearest neighbours
of the plain image that are among the k nearest of its augmented view, and the share of these that are of its class.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl import intervals
from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features
from raysurl.evaluate.nearest import nearest_blocks
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels", "disturbed"})
OF_PIXELS = False


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """`eval/neighbours_class`, and for each policy `eval/neighbours_kept_weak` and `eval/neighbours_class_weak`, shares
    in [0, 1]."""
    if features.disturbed is None:
        return

    def mean(name: str, values: NDArray[np.float64]) -> tuple[str, float]:
        return f"eval/neighbours_{name}", intervals.bootstrap_mean(
            values, seed=seed, name=f"neighbours {name}"
        )

    plain = near(features, features.test, settings.neighbours_k)
    yield mean("class", of_class(features, plain))
    for policy in settings.neighbours_views:
        found = near(features, features.disturbed[policy], settings.neighbours_k)
        yield mean(f"kept_{policy}", kept(plain, found))
        yield mean(f"class_{policy}", of_class(features, found))


def names(settings: Evaluation, division: Division) -> list[str]:
    of_policies = [(f"kept_{p}", f"class_{p}") for p in settings.neighbours_views]
    return [f"eval/neighbours_{name}" for name in ("class", *sum(of_policies, ()))]


def near(features: Features, queries: Tensor, k: int) -> Tensor:
    """Indices (Q, k) of the train rows nearest to queries (Q, D)."""
    found = nearest_blocks(features.train, queries, min(k, len(features.train)))
    return torch.cat([index for _, index in found])


def kept(before: Tensor, after: Tensor) -> NDArray[np.float64]:
    """The share (Q,) of each row of indices (Q, k) that is in the other's row too."""
    share: NDArray[np.float64] = (
        (before[:, :, None] == after[:, None, :]).any(2).double().mean(1).cpu().numpy()
    )
    return share


def of_class(features: Features, found: Tensor) -> NDArray[np.float64]:
    """The share (Q,) of each row of indices (Q, k) that is of the query's class."""
    same = features.train_labels[found] == features.test_labels[:, None]
    share: NDArray[np.float64] = same.double().mean(1).cpu().numpy()
    return share
