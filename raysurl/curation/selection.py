"""Which images to label first: n rows that stand for all.

*kcentre*: the row farthest from those chosen before, again and again, so that none is far from a chosen one (Gonzalez
1985; Sener and Savarese 2018, Algorithm 1). *density*: k-means in which a row counts by its density, and of each
cluster the row nearest to its mean. *typicality*: k-means, and of each cluster the row of the highest density within
it, from the largest cluster on (TypiClust, Hacohen et al. 2022, section 3.2). *random*: any.

Letters: N rows, n chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysurl import streams
from raysurl.curation.clustering import cosine_with_mean, kmeans
from raysurl.curation.outlying import own_density
from raysurl.curation.rows import Embeddings, embeddings_of
from raysurl.errors import InputError

By = Literal["kcentre", "density", "typicality", "random"]
NEIGHBOURS = 20  # of which a density is measured, as TypiClust has it
MOST_CLUSTERS = 500  # of TypiClust; from larger subsets on several are chosen of each

Index = NDArray[np.int64]


def select(embeddings: Any, n: int, by: By = "typicality", *, seed: int = 0) -> Index:
    """(n,) row numbers in the order in which they were chosen, from a file of `raysurl embed` or an array (N, D).

    Raises InputError for n outside [1, N], a `by` that is not known, and for what is not embeddings.
    """
    found = embeddings_of(embeddings)
    if by not in CHOOSERS:
        raise InputError(f"by={by} is not known; choose one of {', '.join(CHOOSERS)}")
    if not 1 <= n <= len(found):
        raise InputError(f"n={n} must be between 1 and {len(found)}, the number of images")
    return CHOOSERS[by](found, n, seed)


def _random(of: Embeddings, n: int, seed: int) -> Index:
    return streams.numpy_stream(seed, "select random").permutation(len(of))[:n]


def _kcentre(of: Embeddings, n: int, seed: int) -> Index:
    """The first at random. One pass over the rows for each that is chosen."""
    first = int(streams.numpy_stream(seed, "select first").integers(len(of)))
    chosen, nearest = [first], np.full(len(of), -2, np.float32)
    for _ in range(n - 1):
        centre = of.rows[chosen[-1]]
        for start, block in of.blocks():
            part = nearest[start : start + len(block)]
            np.maximum(part, block @ centre, out=part)
        nearest[chosen[-1]] = np.inf  # copies of it may still be chosen, itself not
        chosen.append(int(nearest.argmin()))
    return np.array(chosen)


def _density(of: Embeddings, n: int, seed: int) -> Index:
    weights = own_density(of, NEIGHBOURS, seed)
    labels = kmeans(of, n, weights=weights, seed=seed)[1]
    return _of_clusters(labels, cosine_with_mean(of.rows, labels), n)


def _typicality(of: Embeddings, n: int, seed: int) -> Index:
    labels = kmeans(of, min(n, MOST_CLUSTERS), seed=seed)[1]
    typical = np.empty(len(of))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        inside = Embeddings(of.rows[members], None)
        typical[members] = own_density(inside, NEIGHBOURS, seed)
    return _of_clusters(labels, typical, n)


def _of_clusters(labels: Index, scores: NDArray[Any], n: int) -> Index:
    """The best of each cluster, the largest cluster first, then the second best of each, until there are n."""
    sizes = np.bincount(labels)
    order = np.lexsort((np.arange(len(labels)), -scores, labels))
    begins = np.append(True, np.diff(labels[order]) > 0)
    place = np.arange(len(order)) - np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    again = np.lexsort((order, -sizes[labels[order]], place))
    return order[again][:n]


CHOOSERS: dict[str, Callable[[Embeddings, int, int], Index]] = {
    "typicality": _typicality,
    "kcentre": _kcentre,
    "density": _density,
    "random": _random,
}
