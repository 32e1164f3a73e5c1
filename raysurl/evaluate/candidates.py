"""The best of many similarities, block by block: compiled code for raysurl.evaluate.nearest on a CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from raysurl.compiled import compiled
from raysurl.hierarchy.selection import ranked

Array = np.ndarray[Any, Any]


class Candidates:
    """The k best rows of the bank so far for each of Q queries, and up to k that may be among them."""

    def __init__(self, queries: int, k: int, threads: int) -> None:
        self.k, self.threads = k, threads
        self.value = np.empty((queries, 2 * k), np.float32)
        self.index = np.empty((queries, 2 * k), np.int32)
        self.count = np.zeros(queries, np.int64)
        self.cut = np.full(queries, -np.inf, np.float32)

    def add(self, similarity: Array, first: int, queries: slice, pool: ThreadPoolExecutor) -> None:
        """Look at a block (q, n) of `queries`, bank rows from `first` on; blocks come in the order of the bank."""
        held = [rows[queries] for rows in (self.value, self.index, self.count, self.cut)]
        share = -(-len(similarity) // self.threads)
        parts = [slice(start, start + share) for start in range(0, len(similarity), share)]
        jobs = [
            pool.submit(_keep, similarity[part], first, self.k, *(rows[part] for rows in held))
            for part in parts
        ]
        for job in jobs:
            job.result()

    def best(self) -> tuple[Array, Array]:
        """Similarities (Q, k) and indices (Q, k) int64, in the order of the bank."""
        _shrink_all(self.value, self.index, self.count, self.k)
        return self.value[:, : self.k].copy(), self.index[:, : self.k].astype(np.int64)


@compiled
def _keep(
    similarity: Array, first: int, k: int, value: Array, index: Array, count: Array, cut: Array
) -> None:
    """A candidate must beat `cut`, the k-th best so far: an equal one comes later in the bank and so is farther."""
    for row in range(len(similarity)):
        held, least = count[row], cut[row]
        for column in range(similarity.shape[1]):
            if similarity[row, column] > least:
                value[row, held] = similarity[row, column]
                index[row, held] = first + column
                held += 1
                if held == value.shape[1]:
                    least = _shrink(value[row], index[row], held, k)
                    held = k
        count[row], cut[row] = held, least


@compiled
def _shrink(value: Array, index: Array, held: int, k: int) -> float:
    """Leave the k best of `held` candidates in the order in which they came; returns the least of them."""
    least = ranked(value[:held].copy(), held - k)
    room = k  # for candidates equal to the least
    for at in range(held):
        if value[at] > least:
            room -= 1
    to = 0
    for at in range(held):
        if value[at] > least or (value[at] == least and room > 0):
            if value[at] == least:
                room -= 1
            value[to], index[to] = value[at], index[at]
            to += 1
    return least


@compiled
def _shrink_all(value: Array, index: Array, count: Array, k: int) -> None:
    for row in range(len(value)):
        _shrink(value[row], index[row], count[row], k)
