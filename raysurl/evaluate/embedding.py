"""How well an embedding keeps neighbourhoods: trustworthiness, continuity (Venna and Kaski 2006), and kNN recall.

Trustworthiness is 1 where no far point came near (scikit-learn's). Continuity is the same with input and embedding
exchanged: 1 where no near point went away. Recall is the share of the k neighbours in the input that are among the k
in the embedding. Distances are Euclidean and exact, in fp64. Each score is a mean over
points, whose interval is the bootstrap's.

Letters: N points, D and d dimensions of input and embedding, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from raysurl.errors import InputError
from raysurl.evaluate.division import Division, embedding_points
from raysurl.evaluate.features import Features
from raysurl.intervals import bootstrap_mean
from raysurl.recipe import Evaluation

NEEDS = frozenset({"inputs"})
OF_PIXELS = False
SCORES = ("trustworthiness", "continuity", "knn_recall")
BLOCK = 1024  # points whose distances are held at once

Rows = NDArray[np.float64]


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Of the train samples `embedding_points`, whose raw values `features.inputs` are."""
    if features.inputs is None:
        return
    low = features.train[
        embedding_points(len(features.train), settings.embedding_points).to(features.train.device)
    ]
    for name, values in scores_of_points(features.inputs, low, settings.embedding_k).items():
        yield f"eval/{name}", bootstrap_mean(values, seed=seed, name=name)


def names(settings: Evaluation, division: Division) -> list[str]:
    return [f"eval/{name}" for name in SCORES]


def check(division: Division, settings: Evaluation) -> None:
    count, k = min(settings.embedding_points, len(division.bank)), settings.embedding_k
    if not k < count / 2:
        raise InputError(
            f"eval.embedding_k={k} neighbours cannot be compared among {count} points; use less than half of them, or"
            " leave embedding out of eval.protocols"
        )


def neighbourhood_scores(
    inputs: Tensor | NDArray[np.generic], embedding: Tensor | NDArray[np.generic], k: int = 10
) -> dict[str, float]:
    """`trustworthiness`, `continuity` and `knn_recall` in [0, 1] of an embedding (N, d) of inputs (N, D).

    Raises InputError for different numbers of rows, values that are not finite, and k outside [1, N/2).
    """
    return {name: float(values.mean()) for name, values in scores_of_points(inputs, embedding, k).items()}


def scores_of_points(
    inputs: Tensor | NDArray[np.generic], embedding: Tensor | NDArray[np.generic], k: int
) -> dict[str, NDArray[np.float64]]:
    """What each point (N,) adds to the scores, which are the means; raises as `neighbourhood_scores`."""
    high, low = _rows(inputs, "inputs"), _rows(embedding, "embedding")
    n = len(high)
    if len(low) != n:
        raise InputError(f"{n} inputs and {len(low)} embedded points: each input must have its point")
    if not 1 <= k < n / 2:
        raise InputError(f"k={k} neighbours of {n} points: k must be at least 1 and below half of them")
    of_input, of_embedding = (
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors(return_distance=False)
        for rows in (high, low)
    )
    values = (
        _kept_away(high, of_embedding),
        _kept_away(low, of_input),
        (of_input[:, :, None] == of_embedding[:, None, :]).any(axis=2).mean(axis=1),
    )
    return dict(zip(SCORES, values, strict=True))


def _kept_away(rows: Rows, near: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 − what each of the points `rows` (N, D) pays for those of `near` (N, k) that are not among its own k nearest:
    by how much farther they stand in its own order."""
    n, k = near.shape
    paid = np.zeros(n)
    for start in range(0, n, BLOCK):
        here = np.arange(start, min(start + BLOCK, n))
        distance = pairwise_distances(rows[here], rows)
        distance[np.arange(len(here)), here] = np.inf  # a point is no neighbour of its own
        rank = np.empty(distance.shape, np.int64)
        np.put_along_axis(rank, np.argsort(distance, axis=1), np.arange(1, n + 1)[None], axis=1)
        beyond = np.take_along_axis(rank, near[here], axis=1) - k
        paid[here] = beyond.clip(min=0).sum(axis=1)
    return 1 - 2 / (k * (2 * n - 3 * k - 1)) * paid


def _rows(values: Tensor | NDArray[np.generic], name: str) -> Rows:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 2 or not array.size:
        raise InputError(f"{name} must be a matrix of one row per point, not {array.shape}")
    rows = array.astype(np.float64)
    if not np.isfinite(rows).all():
        raise InputError(f"{name} hold a value that is not finite")
    return rows
