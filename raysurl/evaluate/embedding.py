"""How well an embedding keeps neighbourhoods: trustworthiness, continuity (Venna and Kaski 2006), and kNN recall.

Of each point, neighbours are ordered by Euclidean distance, then by index. With r the rank of j among the neighbours
of i in the input and U_k(i) those of its k neighbours in the embedding that are not among the k in the input,

    trustworthiness = 1 − 2 / (N k (2N − 3k − 1)) · Σ_i Σ_{j ∈ U_k(i)} (r(i, j) − k)

1 where no far point came near. Continuity is the same with input and embedding exchanged: 1 where no near point went
away. Recall is the share of the k neighbours in the input that are among the k in the embedding.

Distances are exact, in fp64, for a block of points at a time: 2·N²·D operations, and never N×N values.

Letters: N points, D and d dimensions of input and embedding, b points of a block, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysurl.errors import InputError
from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features, evenly_spaced
from raysurl.recipe import Evaluation

NEEDS = frozenset({"inputs"})
OF_PIXELS = False
BLOCK_VALUES = 2**24  # distances of a block: 128 MiB each of input and embedding

Rows = NDArray[np.float64]
Index = NDArray[np.int64]


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Of `settings.embedding_points` evenly spaced train samples, whose raw values `features.inputs` are."""
    if features.inputs is None:
        return
    low = evenly_spaced(features.train, settings.embedding_points)
    for name, value in neighbourhood_scores(features.inputs, low, settings.embedding_k).items():
        yield f"eval/{name}", value


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
    intruders = lost = shared = 0.0
    for start in range(0, n, step := max(1, BLOCK_VALUES // n)):
        block = np.arange(start, min(start + step, n))
        far, near = _distances(high, block), _distances(low, block)
        of_input, of_embedding = _nearest(far, k), _nearest(near, k)
        in_both = (of_embedding[:, :, None] == of_input[:, None, :]).any(axis=2)
        back = (of_input[:, :, None] == of_embedding[:, None, :]).any(axis=2)
        shared += float(in_both.sum())
        intruders += _excess(far, of_embedding, in_both, k)
        lost += _excess(near, of_input, back, k)
    scale = 2.0 / (n * k * (2.0 * n - 3.0 * k - 1.0))
    return {
        "trustworthiness": 1.0 - scale * intruders,
        "continuity": 1.0 - scale * lost,
        "knn_recall": shared / (n * k),
    }


def trustworthiness(inputs: NDArray[np.generic], embedding: NDArray[np.generic], k: int = 10) -> float:
    """As `neighbourhood_scores`."""
    return neighbourhood_scores(inputs, embedding, k)["trustworthiness"]


def continuity(inputs: NDArray[np.generic], embedding: NDArray[np.generic], k: int = 10) -> float:
    """As `neighbourhood_scores`."""
    return neighbourhood_scores(inputs, embedding, k)["continuity"]


def _rows(values: Tensor | NDArray[np.generic], name: str) -> Rows:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 2 or not array.size:
        raise InputError(f"{name} must be a matrix of one row per point, not {array.shape}")
    rows = array.astype(np.float64)
    if not np.isfinite(rows).all():
        raise InputError(f"{name} hold a value that is not finite")
    # Products of rows around their middle lose least; a median that occurs keeps values on a grid exact, so that
    # equal distances stay equal.
    middle: Rows = np.partition(rows, len(rows) // 2, axis=0)[len(rows) // 2]
    return rows - middle


def _distances(rows: Rows, block: Index) -> Rows:
    """Squared distances (b, N) of the rows `block` (b,) to all; +inf to themselves."""
    squares = np.einsum("nd,nd->n", rows, rows)
    distances = rows[block] @ rows.T
    distances *= -2.0
    distances += squares
    distances += squares[block, None]
    distances[np.arange(len(block)), block] = np.inf
    return distances


def _nearest(distances: Rows, k: int) -> Index:
    """Indices (b, k) of the smallest of distances (b, N); of equal ones at the border those of lowest index."""
    found = np.argpartition(distances, k - 1, axis=1)[:, :k]
    last = np.take_along_axis(distances, found, 1).max(axis=1, keepdims=True)
    for row in np.flatnonzero((distances <= last).sum(axis=1) > k):
        found[row] = np.argsort(distances[row], kind="stable")[:k]
    return found


def _excess(distances: Rows, neighbours: Index, known: NDArray[np.bool_], k: int) -> float:
    """Σ (rank − k) over neighbours (b, k) that are not `known`, ranks by distances (b, N)."""
    total = 0
    for column in range(k):
        rows = np.flatnonzero(~known[:, column])
        if not len(rows):
            continue
        which = neighbours[rows, column]
        others = distances[rows]
        own = others[np.arange(len(rows)), which][:, None]
        rank = 1 + (others < own).sum(axis=1)
        tied = np.flatnonzero((others == own).sum(axis=1) > 1)
        for row in tied:
            rank[row] += int((others[row, : which[row]] == own[row]).sum())
        total += int((rank - k).sum())
    return float(total)
