"""Similarity graphs over a whole data set (GenURL eqs. 2, 4).

A graph keeps p_ij = κ(max(d_ij − μ_i, 0)/σ, ν) on its edges and nothing elsewhere. Nothing of N×N values is ever made.

Letters: N samples, E edges, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from raysurl.functional import log_student_kernel

Rows = NDArray[np.float32]
Symmetry = Literal["union", "mean", "none"]
Scale = Literal["search", "statistics"]

TINY = float(np.finfo(np.float32).tiny)
BLOCK_VALUES = 2**22  # values worked on at once: 32 MiB of float64
BISECTIONS = 60
WIDEST = 1e3  # σ_i is searched within a factor of this around the sample's mean distance from μ_i


@dataclass(frozen=True)
class Edges:
    """Directed edges: `source` and `target` (E,) int64 sample indices, `distance` (E,) float; none twice."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    distance: NDArray[Any]


def similarity_graph(
    edges: Edges,
    num_samples: int,
    *,
    nu: float,
    scale: Scale,
    neighbours: int,
    sigma: float | None,
    symmetry: Symmetry,
) -> csr_array:
    """p (N, N) float32, sparse: the kernel of each edge's distance after μ_i is taken off and σ divided out.

    `scale="search"`: μ_i is the distance of the nearest sample, σ the mean of the σ_i that give the nearest
    `neighbours` samples the sum of kernels log2(neighbours), as UMAP (GenURL sec. V-A.d). `scale="statistics"`: mean
    and standard deviation of all edges' distances, for large data or where no σ_i is defined. `sigma` overrides σ.
    """
    distance = edges.distance.astype(np.float64)
    if scale == "search":
        nearest = _nearest(edges, num_samples, neighbours)
        low, widths = nearest[edges.source, 0], local_widths(nearest, nu)
    else:
        low, widths = np.full(len(distance), distance.sum() / max(len(distance), 1)), np.zeros(0)
    if sigma is None:
        sigma = float(np.mean(widths) if len(widths) else np.std(distance) if len(distance) else 0.0)
    away = np.maximum(distance - low, 0.0)  # κ is even: below μ it would fall again
    ratio = away / max(sigma, 1e-6 * float(distance.max(initial=0)), TINY)  # σ = 0 where all are equally far
    value = log_student_kernel(torch.from_numpy(ratio), nu).exp().numpy()
    directed = csr_array((value, (edges.source, edges.target)), shape=(num_samples, num_samples))
    return csr_array(symmetric(directed, symmetry).astype(np.float32))


def lengths(features: Rows, edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Euclidean distances (E,) of the features (N, D) of the samples of edges (E, 2)."""
    distance = np.empty(len(edges))
    step = max(1, BLOCK_VALUES // max(1, features.shape[1]))
    for start in range(0, len(edges), step):
        part = edges[start : start + step]
        difference = features[part[:, 0]].astype(np.float64) - features[part[:, 1]]
        distance[start : start + step] = np.sqrt(np.square(difference).sum(axis=1))
    return distance


def geodesics(edges: Edges, num_samples: int, reach: float) -> Edges:
    """All pairs that a path joins whose length is at most `reach` times the mean edge's, with that length.

    Dijkstra's algorithm from each sample, cut off there, some samples at a time.
    """
    if not len(edges.distance):
        return edges
    positive = np.maximum(edges.distance, TINY)  # csgraph takes a stored zero for no edge
    graph = csr_array((positive, (edges.source, edges.target)), shape=(num_samples, num_samples))
    limit = reach * float(edges.distance.mean()) * (1 + 1e-9)
    parts = []
    for start in range(0, num_samples, step := max(1, BLOCK_VALUES // num_samples)):
        which = np.arange(start, min(start + step, num_samples))
        reached = dijkstra(graph, indices=which, limit=limit)
        row, target = np.nonzero(np.isfinite(reached))
        other = which[row] != target
        row, target = row[other], target[other]
        parts.append((which[row], target.astype(np.int64), reached[row, target]))
    source, target, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Edges(source, target, distance)


def symmetric(p: csr_array, symmetry: Symmetry) -> csr_array:
    """`union` p + pᵀ − p∘pᵀ, the fuzzy union of UMAP and DMT; `mean` of both; `none`."""
    if symmetry == "union":
        return p + p.T - p * p.T
    return (p + p.T) / 2 if symmetry == "mean" else p


def local_widths(nearest: NDArray[np.float64], nu: float) -> NDArray[np.float64]:
    """σ_i > 0 (n,) of the rows of `nearest` (N, m), ascending distances, +inf = no further neighbour.

    σ_i solves Σ_j κ((d_ij − μ_i)/σ_i, ν) / κ(0, ν) = log2(number of neighbours) by bisection. Rows with fewer than
    three neighbours, or with all at one distance, tell nothing of σ and are left out.
    """
    count = np.isfinite(nearest).sum(axis=1)
    rows = nearest[count >= 3]
    away = rows - rows[:, :1]
    finite = np.isfinite(away)
    typical = np.where(finite, away, 0).sum(axis=1) / finite.sum(axis=1)
    away, typical, wanted = away[typical > 0], typical[typical > 0], np.log2(count[count >= 3][typical > 0])
    low, high = np.log(typical / WIDEST), np.log(typical * WIDEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        ratio = away / np.exp(middle)[:, None]
        total = ((1 + ratio**2 / nu) ** (-(nu + 1) / 2)).sum(axis=1)  # grows with σ
        low, high = np.where(total < wanted, middle, low), np.where(total < wanted, high, middle)
    return np.exp((low + high) / 2)


def _nearest(edges: Edges, num_samples: int, count: int) -> NDArray[np.float64]:
    """(N, count) the smallest distances of each sample's edges, ascending, +inf where it has no more."""
    order = np.lexsort((edges.distance, edges.source))
    source = edges.source[order]
    rank = np.arange(len(source)) - np.searchsorted(source, source)
    table = np.full((num_samples, count), np.inf)
    near = rank < count
    table[source[near], rank[near]] = edges.distance[order][near]
    return table
