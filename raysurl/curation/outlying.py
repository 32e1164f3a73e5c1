"""Outliers: rows that are far from their neighbours.

By `knn` the score is the mean distance to the k nearest others (Angiulli and Pizzuti 2002); by `lof` the local outlier
factor (Breunig et al. 2000), how much thinner the surroundings are than those of the neighbours. Distances are those of
unit rows, √(2 − 2 cos).

Letters: N rows, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysurl.curation.near import near_others
from raysurl.curation.rows import Rows, embeddings_of
from raysurl.curation.whitening import whitened
from raysurl.errors import InputError

K = 50  # neighbours: more than a clump of outliers that are alike has
By = Literal["knn", "lof"]


@dataclass(frozen=True, eq=False)
class Outliers:
    """`scores` (N,), the higher the farther out. `order` (N,): row numbers, the farthest first. `nearest` (N,): of each
    row the nearest other. `recall`: of the neighbours, 1.0 where they are exact."""

    scores: NDArray[np.float64]
    nearest: NDArray[np.int64]
    recall: float

    @property
    def order(self) -> NDArray[np.int64]:
        return np.argsort(-self.scores, kind="stable")


def outliers(
    embeddings: Any, k: int | None = None, by: By = "lof", *, whiten: bool = True, seed: int = 0
) -> Outliers:
    """How far out each row of embeddings lies, a file of `raysurl embed` or an array (N, D).

    `k`: by default `K`, or all others where there are fewer. `whiten`: distances are of whitened rows
    (raysurl.curation.whitening). Raises InputError for k outside [1, N − 1], a `by` that is not known, and what is not
    embeddings.
    """
    found = embeddings_of(embeddings)
    if by not in SCORES:
        raise InputError(f"by={by} is not known; choose one of {', '.join(SCORES)}")
    k = min(K, len(found) - 1) if k is None else k
    if not 1 <= k < len(found):
        raise InputError(f"{len(found)} images have between 1 and {len(found) - 1} neighbours, not k={k}")
    near = near_others(whitened(found) if whiten else found, k, seed=seed)
    distance = np.sqrt(np.maximum(2 - 2 * near.cosine.astype(np.float64), 0))
    return Outliers(SCORES[by](distance, near.index), near.index[:, 0], near.recall)


def mean_distance(distance: NDArray[np.float64], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) of distances (N, k), rising."""
    mean: NDArray[np.float64] = distance.mean(axis=1)
    return mean


def local_outlier_factor(distance: NDArray[np.float64], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) of distances and indices (N, k), rising: the density of the neighbours over that of the row, Definition 7.

    A density is 1 over the mean reach distance max(d(x, o), k-distance(o)), Definitions 5 and 6; with the 1e-10 that
    scikit-learn adds, so that rows which equal all their neighbours have a finite one.
    """
    reach = np.maximum(distance, distance[index, -1])
    density = 1 / (reach.mean(axis=1) + 1e-10)
    factor: NDArray[np.float64] = (density[index] / density[:, None]).mean(axis=1)
    return factor


SCORES: dict[str, Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]] = {
    "knn": mean_distance,
    "lof": local_outlier_factor,
}


def own_density(embeddings: Any, k: int, seed: int = 0) -> Rows:
    """(N,) 1 over the mean distance to the k nearest others, or to all where there are fewer."""
    found = embeddings_of(embeddings)
    if len(found) < 2:
        return np.ones(len(found), np.float32)
    scores = outliers(found, min(k, len(found) - 1), "knn", whiten=False, seed=seed).scores
    return (1 / np.maximum(scores, 1e-6)).astype(np.float32)
