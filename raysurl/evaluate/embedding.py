"""How well an embedding keeps neighbourhoods: trustworthiness, continuity (Venna and Kaski 2006), and kNN recall.

Trustworthiness is 1 where no far point came near (scikit-learn's). Continuity is the same with input and embedding
exchanged: 1 where no near point went away. Recall is the share of the k neighbours in the input that are among the k
in the embedding. Distances are Euclidean and exact: N² of them are held, in fp64.

Letters: N points, D and d dimensions of input and embedding, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import trustworthiness as far_points_kept_away
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from raysurl.errors import InputError
from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features
from raysurl.functional import evenly_spaced
from raysurl.recipe import Evaluation

NEEDS = frozenset({"inputs"})
OF_PIXELS = False
SCORES = ("trustworthiness", "continuity", "knn_recall")

Rows = NDArray[np.float64]


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Of `settings.embedding_points` evenly spaced train samples, whose raw values `features.inputs` are."""
    if features.inputs is None:
        return
    low = evenly_spaced(features.train, settings.embedding_points)
    for name, value in neighbourhood_scores(features.inputs, low, settings.embedding_k).items():
        yield f"eval/{name}", value


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
        far_points_kept_away(high, low, n_neighbors=k),
        far_points_kept_away(low, high, n_neighbors=k),
        (of_input[:, :, None] == of_embedding[:, None, :]).any(axis=2).mean(),
    )
    return dict(zip(SCORES, map(float, values), strict=True))


def _rows(values: Tensor | NDArray[np.generic], name: str) -> Rows:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 2 or not array.size:
        raise InputError(f"{name} must be a matrix of one row per point, not {array.shape}")
    rows = array.astype(np.float64)
    if not np.isfinite(rows).all():
        raise InputError(f"{name} hold a value that is not finite")
    return rows
