"""Clusters of embeddings and their medoids: k-means on the unit sphere, or the project's own online hierarchy.

The medoid of a cluster is the row nearest to the mean of its rows: an image that can be looked at, as a mean cannot.

Letters: N rows, D values, K clusters, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from raysurl import streams
from raysurl.curation.near import near_others
from raysurl.curation.rows import BLOCK, Embeddings, Rows, embeddings_of, taken
from raysurl.errors import InputError
from raysurl.hierarchy import Hierarchy

By = Literal["kmeans", "hierarchy"]
ROUNDS = 25  # of k-means
LEARNED = 256  # rows of which the place of a mean is learned
PASSES, BATCH = 2, 4096  # over all rows in which the hierarchy moves, splits and merges; rows of an update
# of the distance to the fourth neighbour: how far two of a cluster are linked, level by level
QUANTILES = (0.5, 0.9)

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageClusters:
    """`labels` (L, N), the finest level first, numbered from 0 by falling size. `medoids`: of each level (K,) row
    numbers. `cosines` (L, N): of each row with the mean of its cluster. `thresholds`: those of the hierarchy, by level.
    """

    labels: Index
    medoids: list[Index]
    cosines: Rows
    thresholds: tuple[float, ...] = ()


def cluster(
    embeddings: Any,
    k: int = 50,
    by: By = "kmeans",
    *,
    thresholds: Sequence[float] | None = None,
    seed: int = 0,
) -> ImageClusters:
    """Clusters of a file of `raysurl embed` or of an array (N, D).

    `k`: how many, of k-means. `thresholds`: cosines from which on the hierarchy unites clusters, falling, one for each
    level; None: from the distances to the fourth neighbour, which is how DBSCAN's authors choose a radius. Raises
    InputError for fewer rows than k, and for what is not embeddings.
    """
    found = embeddings_of(embeddings)
    if by == "kmeans":
        if not 1 <= k <= len(found):
            raise InputError(
                f"k={k} clusters need between 1 and {len(found)} images, the number that there are"
            )
        return _described(found, kmeans(found, k, seed=seed)[1][None])
    if by != "hierarchy":
        raise InputError(f"by={by} is not known; choose one of kmeans, hierarchy")
    if len(found) < 8:
        raise InputError(f"a hierarchy needs 8 images or more, not {len(found)}")
    chosen = tuple(thresholds) if thresholds else thresholds_of(found, seed=seed)
    return _described(found, hierarchy(found, chosen, seed=seed), chosen)


def kmeans(of: Embeddings, k: int, *, weights: Rows | None = None, seed: int = 0) -> tuple[Rows, Index]:
    """Unit means (K, D) and the nearest of each row (N,), by spherical k-means (Dhillon and Modha 2001) from k-means++
    seeds (Arthur and Vassilvitskii 2007), with `weights` (N,) that say how much a row counts. Means are learned from
    `LEARNED`·K rows drawn at random, where there are more."""
    drawn = streams.numpy_stream(seed, "kmeans rows").permutation(len(of))[: max(LEARNED * k, 10_000)]
    some = np.sort(drawn)
    rows = taken(of.rows, some)
    own = (
        np.ones(len(rows), np.float32) if weights is None else np.ascontiguousarray(weights[some], np.float32)
    )
    means = faiss.Kmeans(
        of.dim,
        k,
        niter=ROUNDS,
        spherical=True,
        seed=streams.integer(seed, "kmeans of curation"),
        min_points_per_centroid=1,
        max_points_per_centroid=2**30,
    )
    means.train(rows, own, init_centroids=rows[_seeds(rows, own, k, seed)])
    centres = np.asarray(means.centroids, np.float32)
    return centres, nearest_mean(of.rows, centres)


def _seeds(rows: Rows, weights: Rows, k: int, seed: int) -> Index:
    """(k,) different rows, each drawn with a chance that grows with the squared distance to those drawn before."""
    draws = streams.numpy_stream(seed, "kmeans seeds").random(k)
    chance = weights.astype(np.float64)
    distance = np.full(len(rows), 4.0)
    chosen: list[int] = []
    for draw in draws:
        cumulated = np.cumsum(chance)
        if cumulated[-1] <= 0:  # all others equal those that are drawn
            chance = np.ones(len(rows))
            chance[chosen] = 0
            cumulated = np.cumsum(chance)
        row = min(int(np.searchsorted(cumulated, draw * cumulated[-1], side="right")), len(rows) - 1)
        chosen.append(row)
        # of equal rows rounding leaves a little
        new = 2 - 2 * (rows @ rows[row]).astype(np.float64)
        distance = np.minimum(distance, np.where(new < 1e-6, 0, new))
        chance = weights * distance
        chance[chosen] = 0
    return np.array(chosen)


def nearest_mean(rows: Rows, centres: Rows) -> Index:
    """(N,) by the highest cosine, of equal ones the lower number."""
    labels = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), BLOCK):
        labels[start : start + BLOCK] = (rows[start : start + BLOCK] @ centres.T).argmax(axis=1)
    return labels


def thresholds_of(of: Embeddings, *, seed: int = 0) -> tuple[float, ...]:
    """Cosines of the `QUANTILES` of the distance to the fourth neighbour (Ester et al. 1996, section 4.2)."""
    near = near_others(of, min(4, len(of) - 1), seed=seed).cosine[:, -1].astype(np.float64)
    first, second = (float(np.clip(np.quantile(near, 1 - q), 0.02, 0.999)) for q in QUANTILES)
    return first, min(second, first - 0.01)


def hierarchy(of: Embeddings, thresholds: Sequence[float], *, seed: int = 0) -> Index:
    """Labels (L, N), one level for each threshold: begun by density, then moved, split and merged in passes."""
    made = Hierarchy(len(of), of.dim, levels=len(thresholds) + 1, merge_thresholds=thresholds, seed=seed)
    made.fit(of.rows)
    for number in range(PASSES):
        order = streams.numpy_stream(seed, "hierarchy pass", number).permutation(len(of))
        for start in range(0, len(of), BATCH):
            part = order[start : start + BATCH]
            made.update(part, of.rows[part])
    return made.labels(np.arange(len(of)))[1:]


# -------------------------------------------------------------------- what they are


def _described(of: Embeddings, labels: Index, thresholds: tuple[float, ...] = ()) -> ImageClusters:
    numbered = np.stack([_by_size(row) for row in labels])
    medoids, cosines = [], np.empty(numbered.shape, np.float32)
    for level, row in enumerate(numbered):
        cosines[level] = cosine_with_mean(of.rows, row)
        medoids.append(best_of_each(row, cosines[level]))
    return ImageClusters(numbered, medoids, cosines, thresholds)


def _by_size(labels: Index) -> Index:
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return rank[inverse]


def cosine_with_mean(rows: Rows, labels: Index) -> Rows:
    """(N,) of each row with the mean of the rows of its label."""
    sums = np.zeros((labels.max() + 1, rows.shape[1]))
    for start in range(0, len(rows), BLOCK):
        np.add.at(sums, labels[start : start + BLOCK], rows[start : start + BLOCK])
    means = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        found[part] = np.einsum("nd,nd->n", rows[part], means[labels[part]])
    return np.minimum(found, 1)


def best_of_each(labels: Index, scores: NDArray[Any]) -> Index:
    """Of each label, ascending, the row of the highest score; of equal ones the first."""
    order = np.lexsort((np.arange(len(labels)), -scores, labels))
    return order[np.append(True, np.diff(labels[order]) > 0)]
