"""The nearest rows of rows: exact while that takes little, else by an index that reaches a recall of .95.

Cosines are those of the rows in single precision whatever the index holds.

Letters: N rows of a bank, Q queries, D values, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from raysurl.curation.indexing import build, without_itself
from raysurl.curation.rows import Embeddings, Rows, taken

EXACT = 50_000**2  # cosines that are all computed
GATHERED = 2**24  # values of rows that are compared at once: 64 MiB
QUERIES = 2048


@dataclass(frozen=True, eq=False)
class Near:
    """`cosine` and `index` (Q, k), the nearest first, of equally near ones the lower index. `recall`: 1.0 if exact."""

    cosine: Rows
    index: NDArray[np.int64]
    recall: float


def by_index(recall: float) -> list[str]:
    """What there is to say of neighbours with this recall: a sentence, or nothing where they are exact."""
    return [f"the neighbours are those of an index, which finds {recall:.1%} of them"] if recall < 1 else []


def near_others(bank: Embeddings, k: int, *, seed: int = 0, among: NDArray[np.int64] | None = None) -> Near:
    """The k ≤ N − 1 nearest others of each row, or of rows `among` alone, whose numbers are then places in it."""
    rows = bank.rows if among is None else taken(bank.rows, among)
    return _near(rows, rows, k, itself=True, seed=seed)


def near_in(bank: Embeddings, queries: Embeddings, k: int, *, seed: int = 0) -> Near:
    """The k ≤ N nearest rows of a bank, for each row of `queries`."""
    return _near(bank.rows, queries.rows, k, itself=False, seed=seed)


def _near(bank: Rows, queries: Rows, k: int, *, itself: bool, seed: int) -> Near:
    index, recall = None, 1.0
    if len(bank) * len(queries) > EXACT:
        index, measured = build(Embeddings(bank, None), "ivf", seed=seed)
        recall = measured.recall
    cosine = np.empty((len(queries), k), np.float32)
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), QUERIES):
        part = queries[start : start + QUERIES]
        which = np.arange(start, start + len(part))
        numbers = _searched(index, bank, part, k + itself)
        if itself:
            numbers = without_itself(numbers, which)
        cosine[which], found[which] = _sorted(bank, part, numbers)
    return Near(cosine, found, recall)


def _searched(index: object, bank: Rows, queries: Rows, k: int) -> NDArray[np.int64]:
    if index is not None:
        found: NDArray[np.int64] = index.search(queries, k)[1]  # type: ignore[attr-defined]
        short = (found < 0).any(axis=1)  # the visited cells hold too few rows
        if not short.any():
            return found
        found[short] = _searched(None, bank, queries[short], k)
        return found
    exact: NDArray[np.int64] = faiss.knn(queries, bank, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return exact


def _sorted(bank: Rows, queries: Rows, found: NDArray[np.int64]) -> tuple[Rows, NDArray[np.int64]]:
    found = np.sort(found, axis=1)
    cosine = np.empty(found.shape, np.float32)
    step = max(1, GATHERED // (found.shape[1] * bank.shape[1]))
    for start in range(0, len(found), step):
        part = slice(start, start + step)
        cosine[part] = np.einsum("qkd,qd->qk", bank[found[part]], queries[part])
    order = np.argsort(-cosine, axis=1, kind="stable")
    return np.take_along_axis(cosine, order, 1), np.take_along_axis(found, order, 1)
