"""Clustering: k-means of the features, k the number of classes, judged by the labels of the test images.

k-means (scikit-learn's Lloyd, k-means++ seeds) is fitted to unit features of train images, without a label, in several
restarts; the one of least inertia is judged. Each test image is of the cluster of the nearest centre. NMI (arithmetic
mean of the entropies) and ARI are scikit-learn's; accuracy is the share of test images whose cluster stands for their
class under the best one-to-one matching (Hungarian method), as SCAN and DeepCluster report it.

The interval of the accuracy holds the matching fixed. Repeated samples raise NMI and ARI, so that their bootstrap is
shifted by what it adds on average.

Letters: N train, Q test samples, K clusters, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from raysurl import intervals, streams
from raysurl.errors import InputError
from raysurl.evaluate.division import Division, some
from raysurl.evaluate.features import Features
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels"})
OF_PIXELS = True

Counts = NDArray[np.int64]


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """`eval/clustering_accuracy` in percent, `eval/clustering_nmi` and `eval/clustering_ari`, of the best restart;
    `eval/clustering_accuracy_std` over the restarts."""
    those = some(len(features.train), settings.clustering_points, seed, "clustering points")
    train = features.train[those.to(features.train.device)]
    labels, classes = features.test_labels.cpu().numpy(), features.num_classes
    restarts = clusters(train, features.test, classes, restarts=settings.clustering_restarts, seed=seed)
    right = [matched(found, labels, classes) for _, found in restarts]
    best = min(range(len(restarts)), key=lambda restart: restarts[restart][0])
    found = restarts[best][1]

    def of_counts(score: Callable[[Counts], float], name: str) -> intervals.Measured:
        return intervals.bootstrap(
            len(labels),
            lambda taken: score(contingency(found, labels, classes, taken)),
            seed=seed,
            name=f"clustering {name}",
            shifted=True,
        )

    yield "eval/clustering_accuracy", intervals.accuracy(right[best])
    yield "eval/clustering_nmi", of_counts(nmi, "nmi")
    yield "eval/clustering_ari", of_counts(ari, "ari")
    yield "eval/clustering_accuracy_std", float(np.std([100 * r.mean() for r in right]))


def names(settings: Evaluation, division: Division) -> list[str]:
    return [f"eval/clustering_{name}" for name in ("accuracy", "nmi", "ari", "accuracy_std")]


def check(division: Division, settings: Evaluation) -> None:
    points = min(len(division.bank), settings.clustering_points)
    if points < division.num_classes:
        raise InputError(
            f"{points} labelled train samples cannot make {division.num_classes} clusters, one a class; use more"
            " (eval.clustering_points=), or leave clustering out of eval.protocols"
        )


def clusters(
    train: Tensor, test: Tensor, k: int, *, restarts: int, seed: int
) -> list[tuple[float, NDArray[np.int64]]]:
    """Of each restart of k-means on train (N, D): its inertia, and the clusters (Q,) of test (Q, D)."""
    rows, others = (F.normalize(x.float(), dim=1).cpu().numpy() for x in (train, test))
    made = []
    with warnings.catch_warnings(
        category=ConvergenceWarning, action="ignore"
    ):  # fewer different rows than clusters
        for restart in range(restarts):
            means = KMeans(k, n_init=1, random_state=streams.integer(seed, "clustering", restart)).fit(rows)
            made.append((float(means.inertia_), means.predict(others).astype(np.int64)))
    return made


def matched(clusters: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    """(Q,): whether a sample's cluster stands for its class, each cluster for one class and each class for one."""
    counts = contingency(clusters, labels, classes)
    of_cluster = np.full(len(counts), -1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    of_cluster[rows] = columns
    right: NDArray[np.bool_] = of_cluster[clusters] == labels
    return right


def contingency(
    clusters: NDArray[np.int64], labels: NDArray[np.int64], classes: int, taken: Counts | None = None
) -> Counts:
    """How many samples are of each cluster and class, (C, C); `taken` (Q,): how often each counts."""
    cells = np.bincount(clusters * classes + labels, taken, minlength=classes**2)
    return cells.reshape(classes, classes).astype(np.int64)


def nmi(counts: Counts) -> float:
    """Mutual information of a contingency table over the mean of the two entropies; 1 where both are constant."""
    p = counts / counts.sum()
    entropies = _entropy(p.sum(0)) + _entropy(p.sum(1))
    return 1.0 if entropies == 0 else max(2 * (entropies - _entropy(p.ravel())) / entropies, 0.0)


def _entropy(p: NDArray[np.float64]) -> float:
    there = p[p > 0]
    return float(-(there * np.log(there)).sum())


def ari(counts: Counts) -> float:
    """Rand index of a contingency table, adjusted for chance (Hubert and Arabie 1985)."""

    def pairs(n: Counts) -> float:
        return float((n.astype(np.float64) * (n - 1) / 2).sum())

    together, of_rows, of_columns = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    chance = of_rows * of_columns / max(pairs(counts.sum(keepdims=True)), 1.0)
    most = (of_rows + of_columns) / 2
    return 1.0 if most == chance else (together - chance) / (most - chance)
