"""Nearest-neighbour graphs of a data set's features, with faiss: exact below 50,000 samples, approximate above.

No N×N array is ever made: a block of rows is searched at a time. faiss expands ‖x−y‖² = ‖x‖² − 2 x·y + ‖y‖², which
loses the small distances of nearly equal rows, so distances are computed anew from the differences of the rows found.

Letters: N samples, D features, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from raysurl import streams
from raysurl.errors import InputError

EXACT_BELOW = 50_000  # samples
BLOCK_VALUES = 2**24  # values of the differences of one block's neighbours: 64 MiB
RECALL_WANTED = 0.95
RECALL_QUERIES = 256
LARGEST_SHARE = 1 / 8  # of the cells that a query visits: exact search takes no longer than visiting more

Rows = NDArray[np.float32]
Search = Callable[[NDArray[np.int64], int], NDArray[np.int64]]
"""(numbers of the query rows (B,), k) -> indices (B, k), the rows themselves usually among them."""


@dataclass(frozen=True)
class KnnGraph:
    """The k nearest neighbours of every sample, itself excluded.

    `distances` (N, k) float32: Euclidean, ascending; with the metric "cosine" those of unit rows, √(2−2 cos).
    `indices` (N, k) int64: the neighbours; of equally distant ones the lower index comes first.
    `recall`: share of the true k nearest neighbours that the graph has; 1.0 if exact, else measured on a sample.
    """

    distances: NDArray[np.float32]
    indices: NDArray[np.int64]
    recall: float


def knn_graph(
    features: NDArray[Any],
    k: int,
    *,
    exact: bool | None = None,
    metric: Literal["cosine", "euclidean"] = "cosine",
    seed: int = 0,
) -> KnnGraph:
    """The k nearest neighbours of each row of `features` (N, D), of any floating type.

    `exact`: None means exact for fewer than 50,000 rows. The approximate search is an inverted file (Jégou et al.
    2011) over at most 4√N cells of a K-means seeded with `seed`: the number of cells visited doubles until a recall of
    0.95 is measured on 256 sampled rows. Where an eighth of the cells is not enough, as on features without
    clusters, the search is exact after all, since it then costs no more. Exact search is 2·N²·D operations.
    Which of several neighbours is k-th is decided in single precision, 1e-6 of the largest squared row.
    With "cosine" rows are normalised here; a row of zeros stays one, at distance 1 from every other.

    Raises InputError for fewer than two rows, k outside [1, N−1], or a row that is not finite.
    """
    _check(features, k, metric)
    rows = _unit(features) if metric == "cosine" else _centred(features)
    values = rows if metric == "cosine" else features  # centring rounds; distances are of the rows as given
    everywhere: Search = lambda which, k: faiss.knn(rows[which], rows, k)[1]  # noqa: E731
    if exact if exact is not None else len(rows) < EXACT_BELOW:
        return KnnGraph(*_graph_of(values, k, everywhere), recall=1.0)
    index = _inverted_file(rows, seed)
    in_cells = _cell_search(index, rows, everywhere)
    sample = streams.numpy_stream(seed, "recall").permutation(len(rows))[:RECALL_QUERIES]
    truth, _ = _neighbours(values, sample, k, everywhere)
    most = max(1, int(LARGEST_SHARE * index.nlist))
    while (reached := _recall(truth, _neighbours(values, sample, k, in_cells)[0])) < RECALL_WANTED:
        if index.nprobe >= most:
            return KnnGraph(*_graph_of(values, k, everywhere), recall=1.0)
        index.nprobe = min(2 * index.nprobe, most)
    return KnnGraph(*_graph_of(values, k, in_cells), recall=reached)


def _check(features: NDArray[Any], k: int, metric: str) -> None:
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise InputError(f"a neighbour graph needs at least two rows of features, not shape {features.shape}")
    if metric not in ("cosine", "euclidean"):
        raise InputError(f"the metric of a neighbour graph is cosine or euclidean, not {metric!r}")
    if not 1 <= k < len(features):
        raise InputError(
            f"{len(features)} samples have between 1 and {len(features) - 1} neighbours, not k={k}"
        )
    with np.errstate(over="ignore"):  # what single precision cannot hold counts as infinite
        finite = [np.isfinite(block.astype(np.float32)).all(axis=1) for block in _blocks(features)]
    if bad := len(features) - int(np.concatenate(finite).sum()):
        raise InputError(
            f"{bad} of {len(features)} feature rows are not finite; a neighbour graph needs all to be"
        )


def _unit(features: NDArray[Any]) -> Rows:
    rows = np.empty(features.shape, np.float32)
    for block, out in zip(_blocks(features), _blocks(rows), strict=True):
        wide = block.astype(np.float64)
        out[:] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return rows


def _centred(features: NDArray[Any]) -> Rows:
    """Rows around their mean, whose squares lose least."""
    rows = np.empty(features.shape, np.float32)
    mean = features.mean(axis=0, dtype=np.float64)
    for block, out in zip(_blocks(features), _blocks(rows), strict=True):
        out[:] = block - mean
    if float(np.abs(rows).max()) > 1e15:
        raise InputError(
            "feature values differ by more than 1e15, whose squares single precision cannot hold"
        )
    return rows


def _blocks(matrix: NDArray[Any], size: int = 16384) -> Iterator[NDArray[Any]]:
    return (matrix[start : start + size] for start in range(0, len(matrix), size))


def _inverted_file(rows: Rows, seed: int) -> Any:
    cells = max(1, min(int(4 * len(rows) ** 0.5), len(rows) // 39))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(rows.shape[1]), rows.shape[1], cells)
    # a rough K-means: cells of all rows and ten rounds take twenty times as long for a hundredth more recall
    index.cp.seed, index.cp.niter = streams.integer(seed, "cells"), 4
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 8
    index.train(rows)
    index.add(rows)
    index.nprobe = min(4, cells)  # fewer saves no time: a query's own cost is that of four cells
    return index


def _cell_search(index: Any, rows: Rows, everywhere: Search) -> Search:
    def search(which: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = index.search(rows[which], k)[1]
        short = (found < 0).any(axis=1)  # the visited cells hold too few samples
        if short.any():
            found[short] = everywhere(which[short], k)
        return found

    return search


def _graph_of(values: NDArray[Any], k: int, search: Search) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    distances = np.empty((len(values), k), np.float32)
    indices = np.empty((len(values), k), np.int64)
    size = min(max(BLOCK_VALUES // ((k + 1) * values.shape[1]), 32), 4096)
    for which in _blocks(np.arange(len(values)), size):
        distances[which], indices[which] = _neighbours(values, which, k, search)
    return distances, indices


def _neighbours(
    values: NDArray[Any], which: NDArray[np.int64], k: int, search: Search
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Distances and indices (B, k) of the rows `which` (B,)."""
    found = search(which, k + 1)
    # The sample itself need not come first, nor be found at all, where others equal it; then the last one goes.
    itself = found == which[:, None]
    itself[~itself.any(axis=1), -1] = True
    found = np.sort(found[~itself].reshape(len(which), k), axis=1)
    distances = np.empty(found.shape, np.float32)
    wide = np.result_type(values, np.float32)
    for start in range(0, len(which), size := max(1, BLOCK_VALUES // (k * values.shape[1]))):
        part = slice(start, start + size)
        difference = values[found[part]].astype(wide, copy=False)
        difference -= values[which[part], None]
        distances[part] = np.sqrt(np.einsum("bkd,bkd->bk", difference, difference))
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(found, order, 1)


def _recall(truth: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Share of the distances `found` (Q, k) no farther than the true k-th: of equally distant rows any will do."""
    return float((found <= truth[:, -1:] * (1 + 1e-6)).mean())
