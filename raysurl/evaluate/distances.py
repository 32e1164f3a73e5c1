"""Distances of pairs of one class and of different classes (GenURL, Fig. 14): how far apart are their histograms?

The paper draws histograms of the cosine distance of positive and negative pairs, in the input and in the latent space,
and reads off whether the space is discriminative; it gives no number. Here each pair is of a test and a train image,
and the numbers are: the mean distances; the area that the two histograms share; and, for each test image, the chance
that a train image of its class is nearer than one of another (the area under the ROC curve, ties half), averaged.

Letters: N train, Q test samples, B bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from raysurl import intervals
from raysurl.errors import InputError
from raysurl.evaluate.division import Division, some
from raysurl.evaluate.features import Features
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels"})
OF_PIXELS = True
QUERIES, GALLERY = 2000, 5000  # samples whose pairs are looked at, at most
BLOCK = 200  # of the test samples
BINS = 100  # of cosine distances from 0 to 2

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Of each of Q test samples with pairs of both kinds: mean distances (Q,), the chance (Q,) that one of its class is
    nearer, and histograms (Q, B) of both kinds."""

    same: Rows
    different: Rows
    chance: Rows
    same_counts: NDArray[np.int64]
    different_counts: NDArray[np.int64]


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """`eval/distance_auc`, `_overlap` in [0, 1], `_same` and `_different` in [0, 2]."""
    found = pairs(features, seed)
    for name, values in (("auc", found.chance), ("same", found.same), ("different", found.different)):
        yield f"eval/distance_{name}", intervals.bootstrap_mean(values, seed=seed, name=f"distance {name}")

    def shared(taken: NDArray[np.int64]) -> float:
        return overlap(taken @ found.same_counts, taken @ found.different_counts)

    yield (
        "eval/distance_overlap",
        intervals.bootstrap(len(found.chance), shared, seed=seed, name="distance overlap"),
    )


def names(settings: Evaluation, division: Division) -> list[str]:
    return [f"eval/distance_{name}" for name in ("auc", "same", "different", "overlap")]


def check(division: Division, settings: Evaluation) -> None:
    assert division.labels is not None
    if len(np.unique(division.labels[division.bank])) < 2:
        raise InputError(
            "the distances protocol needs two classes among the train samples; leave distances out of eval.protocols"
        )


def overlap(same: NDArray[np.int64], different: NDArray[np.int64]) -> float:
    """The area that two histograms (B,) of area 1 share."""
    return float(np.minimum(same / same.sum(), different / different.sum()).sum())


def histograms(features: Features, seed: int) -> NDArray[np.int64]:
    """(2, B): pairs of one class and of different classes by their distance; zeros where there are none."""
    if not features.has_labels:
        return np.zeros((2, BINS), np.int64)
    found = pairs(features.labelled(), seed)
    return np.stack([found.same_counts.sum(0), found.different_counts.sum(0)])


def pairs(features: Features, seed: int = 0) -> Pairs:
    """Raises InputError where no test sample has train samples of its class and of another."""
    those = some(len(features.train), GALLERY, seed, "distances gallery").to(features.train.device)
    queries_at = some(len(features.test), QUERIES, seed, "distances queries").to(features.test.device)
    train, train_labels = features.train[those], features.train_labels[those].cpu().numpy()
    test, test_labels = features.test[queries_at], features.test_labels[queries_at].cpu().numpy()
    gallery = F.normalize(train.float(), dim=1)
    parts = []
    for start in range(0, len(test), BLOCK):
        queries = F.normalize(test[start : start + BLOCK].float(), dim=1)
        distance = (1 - queries @ gallery.T).clamp(0, 2).cpu().numpy().astype(np.float64)
        same = test_labels[start : start + BLOCK, None] == train_labels
        both = same.any(1) & ~same.all(1)
        parts.append(_of_block(distance[both], same[both]))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    if not len(columns[0]):
        raise InputError(
            "no test sample has train samples of its class and of another: no distances to compare"
        )
    return Pairs(*columns)


def _of_block(distance: Rows, same: NDArray[np.bool_]) -> tuple[NDArray[np.generic], ...]:
    """The columns of `Pairs` for distances (q, N)."""
    from scipy.stats import rankdata  # half a second that other protocols need not wait

    count = same.sum(1)
    other = same.shape[1] - count
    ranks = (rankdata(distance, axis=1) * same).sum(1) if len(distance) else np.zeros(0)
    # Mann and Whitney: ranks of the same class count the pairs in which it is the farther one
    farther = (ranks - count * (count + 1) / 2) / np.maximum(count * other, 1)
    bins = np.minimum((distance * (BINS / 2)).astype(np.int64), BINS - 1)
    cells = (2 * np.arange(len(distance))[:, None] + same) * BINS + bins
    counts = np.bincount(cells.ravel(), minlength=2 * BINS * len(distance)).reshape(-1, 2, BINS)
    means = ((distance * part).sum(1) / np.maximum(part.sum(1), 1) for part in (same, ~same))
    return (*means, 1 - farther, counts[:, 1], counts[:, 0])
