"""Similarity graphs over a whole data set, and the memory that tells a step the part of its batch (GenURL eqs. 2, 4).

A graph keeps p_ij = κ(max(d_ij − μ_i, 0)/σ, ν) on its edges and nothing elsewhere. It is made once, before the first
step; nothing of N×N values is ever made.

Letters: N samples, E edges, k neighbours, B global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from raysurl.errors import InputError
from raysurl.functional import log_student_kernel
from raysurl.method import Answer, Progress, Snapshot

Rows = NDArray[np.float32]
Symmetry = Literal["union", "mean", "none"]
Scale = Literal["search", "statistics"]

POSITION = "position"  # in an answer: where in the global batch each row stands
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


def nearest_in(state: Mapping[str, Any], most: int) -> NDArray[np.int64]:
    """The graphs of a `GraphMemory.state_dict`, together -> (N, k ≤ most) the most similar of each, −1 = none left."""
    graphs = [_graph(arrays) for arrays in state.values()]
    together = csr_array(sum(graphs[1:], graphs[0]))
    degree = np.diff(together.indptr)
    source = np.repeat(np.arange(len(degree)), degree)
    order = np.lexsort((together.indices, -together.data, source))
    rank = np.arange(len(source)) - np.repeat(together.indptr[:-1], degree)
    near = rank < most
    table = np.full((len(degree), min(most, int(degree.max(initial=1)))), -1, np.int64)
    table[source[near], rank[near]] = together.indices[order][near]
    return table


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


Make = Callable[[Rows | None], csr_array]
"""Features (N, D) of all samples, None where no graph needs them -> p (N, N), sparse."""


class GraphMemory:
    """The similarity graphs of a run by name, made from features of the whole data set before the first step.

    It remembers nothing of single steps. Until it is made, a graph has no edges.
    """

    answers: ClassVar[bool] = True

    def __init__(self, makers: Mapping[str, Make], num_samples: int) -> None:
        self.makers, self.num_samples = dict(makers), num_samples
        self.graphs: dict[str, csr_array] = {}

    def push(self, keys: Tensor, index: Tensor) -> None:
        """Graphs do not follow single batches."""

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        rows = None if features is None else features.numpy()
        self.graphs = {name: make(rows) for name, make in self.makers.items()}

    def answer(self, index: Tensor, step: int) -> Answer:
        """Graph name -> p (B, B) fp32 among the samples `index` (B,); `position` (B,) int64."""
        rows, size = index.numpy(), len(index)
        blocks = {
            name: torch.from_numpy(self.graphs[name][rows][:, rows].toarray())
            if name in self.graphs
            else torch.zeros(size, size)
            for name in self.makers
        }
        return {**blocks, POSITION: torch.arange(size)}

    def snapshot(self) -> Snapshot:
        return {}

    def mirror(self, device: torch.device) -> GraphMemory:
        """Nothing but the names: what a step reads are answers."""
        return GraphMemory(self.makers, self.num_samples)

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]:
        """`health/<graph>_purity`: the share of a graph's similarity that lies between samples of one label."""
        if labels is None:
            return {}
        found = {}
        for name, graph in self.graphs.items():
            edges = graph.tocoo()
            source, target = labels[edges.row], labels[edges.col]
            judged = (source >= 0) & (target >= 0)
            if (total := float(edges.data[judged].sum())) > 0:
                found[f"health/{name}_purity"] = float(edges.data[judged & (source == target)].sum()) / total
        return found

    def state_dict(self) -> dict[str, Any]:
        return {name: _arrays(graph) for name, graph in self.graphs.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError where the stored graphs are of another number of samples, or others than this run's."""
        graphs = {name: _graph(arrays) for name, arrays in state.items()}
        sizes = {name: graph.shape[0] for name, graph in graphs.items()}
        if graphs and sizes != dict.fromkeys(self.makers, self.num_samples):
            raise InputError(
                f"the stored graphs have the sample numbers {sizes}; this run has {', '.join(self.makers)} over"
                f" {self.num_samples} samples"
            )
        self.graphs = graphs


def _arrays(graph: csr_array) -> dict[str, Tensor]:
    parts = {"value": graph.data, "target": graph.indices, "begin": graph.indptr}
    return {name: torch.from_numpy(np.array(array)) for name, array in parts.items()}


def _graph(arrays: Mapping[str, Tensor]) -> csr_array:
    value, target, begin = (arrays[name].numpy() for name in ("value", "target", "begin"))
    return csr_array((value, target, begin), shape=(len(begin) - 1, len(begin) - 1))
