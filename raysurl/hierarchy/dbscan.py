"""Density clustering on a nearest-neighbour graph: DBSCAN (Ester et al. 1996), and nested clusters for several radii.

On a graph with all N−1 neighbours this is scikit-learn's DBSCAN, except that a border sample within reach of several
clusters joins the one with the nearest core sample. With fewer, core samples and borders stay exact, but an edge
between two core samples can be missing: a cluster may fall into parts, and two are never wrongly joined. An
approximate graph can also miss that a sample is core.

Letters: N samples, k neighbours, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from raysurl.errors import InputError
from raysurl.neighbours import KnnGraph

NOISE = -1


def dbscan(graph: KnnGraph, *, radius: float, min_points: int = 4) -> NDArray[np.int64]:
    """Labels (N,) int64, clusters numbered by their first core sample, −1 = noise.

    A core sample has at least `min_points` samples, itself included, within `radius` (Euclidean, as in the graph).
    Core samples within `radius` of each other are of one cluster; any other sample joins the nearest core sample
    within `radius`. Raises InputError for a radius that is not positive and finite, or a graph with fewer
    than min_points − 1 neighbours, which cannot tell what a core sample is.
    """
    check_radii([radius])
    k = graph.indices.shape[1]
    if not 1 <= min_points <= k + 1:
        raise InputError(f"with {k} neighbours min_points must be between 1 and {k + 1}, not {min_points}")
    near = graph.distances <= radius
    core = near.sum(axis=1) + 1 >= min_points
    to_core = near & core[graph.indices]
    edges = to_core & core[:, None]
    ends = np.concatenate([[0], np.cumsum(edges.sum(axis=1))])
    matrix = csr_array((np.ones(ends[-1], np.int8), graph.indices[edges], ends), shape=(len(core), len(core)))
    component = connected_components(matrix, directed=False)[1]  # an edge counts whichever end has it
    labels = np.full(len(core), NOISE, np.int64)
    labels[core] = np.unique(component[core], return_inverse=True)[1]
    border = ~core & to_core.any(axis=1)
    nearest = to_core[border].argmax(axis=1)  # neighbours are in ascending order
    labels[border] = labels[graph.indices[border, nearest]]
    return labels


def singletons(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels (N,) in which each noise sample is a cluster of its own, numbered after the others."""
    noise = labels == NOISE
    fresh = labels.copy()
    fresh[noise] = labels.max(initial=NOISE) + 1 + np.arange(noise.sum())
    return fresh


def nested_labels(graph: KnnGraph, radii: Sequence[float], min_points: int = 4) -> NDArray[np.int64]:
    """Labels (L, N) int64 by DBSCAN at ascending `radii`: samples equal at one level are equal at all after it.

    Noise becomes clusters of one sample. From the second level on, all members of a cluster of the level before
    get the label that most of them have in this level's DBSCAN (equal counts: the lowest label, noise last); where
    most are noise, the cluster stays one of its own. Only a border sample's label can change by this: core samples
    stay core as the radius grows. Raises InputError if the radii do not ascend, and as `dbscan`.
    """
    check_radii(radii)
    levels = np.empty((len(radii), len(graph.indices)), np.int64)
    for level, radius in enumerate(radii):
        labels = dbscan(graph, radius=radius, min_points=min_points)
        levels[level] = singletons(labels) if level == 0 else _majority(levels[level - 1], labels)
    return levels


def check_radii(radii: Sequence[float]) -> None:
    """Raise InputError unless all are positive and finite and each is larger than the one before."""
    if not all(0 < r < float("inf") for r in radii):
        raise InputError(f"DBSCAN's radii must be positive and finite, not {', '.join(map(str, radii))}")
    if any(finer >= coarser for finer, coarser in pairwise(radii)):
        raise InputError(
            f"DBSCAN's radii must ascend, finest clusters first, not {', '.join(map(str, radii))}"
        )


def _majority(finer: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels (N,): to each cluster of `finer` (N,), numbered from 0, the most frequent of its members' `labels`."""
    last = labels.max(initial=NOISE) + 1  # noise, as the label after all others
    pairs, counts = np.unique(
        finer * (last + 1) + np.where(labels == NOISE, last, labels), return_counts=True
    )
    cluster, label = np.divmod(pairs, last + 1)
    order = np.lexsort((label, -counts, cluster))
    first = order[np.unique(cluster[order], return_index=True)[1]]
    chosen = singletons(np.where(label[first] == last, NOISE, label[first]))
    return np.unique(chosen[finer], return_inverse=True)[1]  # a label that no cluster chose leaves no gap
