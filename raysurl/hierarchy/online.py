"""Online hierarchical clustering of all samples, one batch at a time (RCL, sec. 4.3; after Zheng et al. 2021).

Level 1 is the sample itself; level h + 1 groups the clusters of level h. Labels are parent pointers, so two samples
that share a cluster share every coarser one (the paper's cluster-preserve property) by construction.

An update takes the new features of a batch. Then, from the finest level to the coarsest, for the clusters that
batches touched and whose turn it is:

1. each touched unit (a child of a cluster) moves to the nearest cluster under the same parent;
2. each touched cluster is split at its density peaks (raysurl.hierarchy.split);
3. each piece is united with its nearest sibling if their cosine exceeds the level's threshold (…nearest).

That is every touched cluster, or, where they are too many for the time of an update, each in its turn after a stated
number of updates (raysurl.hierarchy.turns).

Nothing crosses a parent's border: level h changes its parents only when level h + 1 is updated. 1, the number of
prototypes (a piece per eight units) and the correction of cosines for noisy centres are ours; `relocate=False,
prototypes=2, correct_noise=False` is the paper's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from raysurl import streams
from raysurl.errors import InputError
from raysurl.hierarchy import forest, signals, turns
from raysurl.hierarchy.dbscan import nested_labels
from raysurl.hierarchy.forest import Ids
from raysurl.hierarchy.nearest import merge, relocate
from raysurl.hierarchy.split import split
from raysurl.neighbours import knn_graph

BLOCK = 65536


class Hierarchy:
    """Clusters of `num_samples` samples on `levels` levels, the samples being the first.

    `merge_thresholds`: cosine above which clusters are united, for level 2 and up, decreasing. The radii of the warm
    start follow from them: r = √(2 − 2σ), so .755 and .68 are the paper's .7 and .8. `max_clusters`: at most so
    many clusters per level and update are reworked, and the others wait for their turn; None: as many as its time
    allows (…turns). `max_units`: density peaks are sought among at most so many children. `mode`: units and pieces
    go to the nearest prototype, or to the one that label propagation finds most possible. Deterministic for a
    given order of updates and `seed`.

    Raises InputError for a setting that makes no sense; every method does so for bad input, and leaves the state as
    it was.
    """

    def __init__(
        self,
        num_samples: int,
        dim: int,
        *,
        levels: int = 3,
        merge_thresholds: Sequence[float] = (0.755, 0.68),
        mode: Literal["nearest", "label_propagation"] = "nearest",
        prototypes: int = 16,
        relocate: bool = True,
        correct_noise: bool = True,
        max_clusters: int | None = None,
        max_units: int = 256,
        min_points: int = 4,
        num_neighbours: int = 32,
        seed: int = 0,
    ) -> None:
        _check(num_samples, dim, levels, merge_thresholds)
        if prototypes < 2 or max_units < 2 or (max_clusters is not None and max_clusters < 1):
            raise InputError("a hierarchy needs prototypes ≥ 2, max_units ≥ 2 and max_clusters ≥ 1")
        self.num_samples, self.dim, self.levels = num_samples, dim, levels
        self.merge_thresholds = tuple(merge_thresholds)
        self.propagate = mode == "label_propagation"
        self.prototypes, self.relocate, self.correct_noise = prototypes, relocate, correct_noise
        self.max_clusters, self.max_units = max_clusters, max_units
        self.min_points, self.num_neighbours, self.seed = min_points, num_neighbours, seed
        self.recall = 1.0  # of the kNN graph of the last `fit`
        self._begin()

    def _begin(self) -> None:
        self._layers = forest.empty_forest(self.num_samples, self.dim, self.levels)
        self._features = forest.empty_features(self.num_samples, self.dim)
        self.step = 0  # of the last update
        self._seen = 0  # samples updated since the sums were last recomputed
        self.splits = np.zeros(self.levels - 1, np.int64)  # since the last `health`, per level from level 2
        self.merges = np.zeros(self.levels - 1, np.int64)
        self.longest_wait = np.zeros(self.levels - 1, np.int64)  # updates that a touched cluster waited
        self._looked = np.zeros((self.levels - 1, 0), np.int32)  # labels at the last `health`

    @property
    def fitted(self) -> bool:
        return bool(self._layers.samples[self.levels, 0])

    def fit(self, features: ArrayLike) -> None:
        """Begin from features (N, D): density clustering on their kNN graph, coarser levels by majority.

        Noise becomes clusters of one sample. Rows are normalised.
        """
        rows = self._rows(features, self.num_samples)
        graph = knn_graph(rows, min(self.num_neighbours, self.num_samples - 1), seed=self.seed)
        radii = [float(np.sqrt(2 - 2 * sigma)) for sigma in self.merge_thresholds]
        labels = nested_labels(graph, radii, min_points=self.min_points)
        self.begin(rows, labels)
        self.recall = graph.recall

    def begin(self, features: ArrayLike, labels: ArrayLike) -> None:
        """Begin from features (N, D) and given nested labels (L − 1, N), finest first."""
        rows = self._rows(features, self.num_samples)
        given = np.asarray(labels, np.int64).reshape(-1, self.num_samples)
        if len(given) != self.levels - 1:
            raise InputError(
                f"labels have {len(given)} levels, the hierarchy {self.levels - 1} above the samples"
            )
        for finer, coarser in pairwise(given):
            pairs = len(np.unique(np.stack([finer, coarser]), axis=1).T)
            if pairs != len(np.unique(finer)):
                raise InputError(
                    "labels are not nested: samples that share a cluster must share every coarser one"
                )
        self._begin()
        for start in range(0, len(rows), BLOCK):  # no second copy of all features
            self._features.bits[start : start + BLOCK] = _half(rows[start : start + BLOCK])
        forest.build(self._layers, self.levels, given)
        forest.recompute_sums(self._layers, self._features, self.levels)

    def update(self, index: ArrayLike, features: ArrayLike, *, step: int | None = None) -> bool:
        """New features (B, D) of samples `index` (B,), which must be distinct, then the three moves of each level.

        A step that is not later than the last one changes nothing (False), so a call may be repeated.
        """
        samples, rows = self._index(index), self._rows(features, None)
        if len(rows) != len(samples):
            raise InputError(f"{len(samples)} sample indices came with {len(rows)} feature rows")
        if len(np.unique(samples)) != len(samples):
            raise InputError("a sample index is repeated in the batch; indices of an update must be distinct")
        if not self.fitted:
            raise InputError("the hierarchy has no clusters yet; call fit first")
        if step is not None and step <= self.step:
            return False
        self.step = self.step + 1 if step is None else step
        forest.replace(self._layers, self._features, self.levels, samples, _half(rows))
        for layer in range(1, self.levels):
            self._rework(layer, samples)
        self._seen += len(samples)
        if self._seen >= self.num_samples:
            forest.recompute_sums(self._layers, self._features, self.levels)
            self._seen = 0
        return True

    def _rework(self, layer: int, samples: NDArray[np.int64]) -> None:
        """The three moves for the clusters of one level that the batch touched, or for those whose turn it is."""
        layers, features = self._layers, self._features
        turns.mark(layers, layer - 1, np.unique(forest.ancestors(layers, samples, layer - 1)), self.step)
        now = turns.due(
            layers,
            layer,
            self.dim,
            most=self.max_clusters,
            prototypes=self.prototypes,
            max_units=self.max_units,
        )
        wait = self.step - int(layers.since[layer][now].min(initial=self.step))
        self.longest_wait[layer - 1] = max(self.longest_wait[layer - 1], wait)
        units = np.sort(turns.take(layers, layer, now))
        free = int(layers.free_size[layer])
        if self.relocate:
            relocate(layers, features, layer - 1, units)
        emptied = int(layers.free_size[layer]) - free
        clusters = np.unique(layers.parent[layer - 1][units])
        # a cluster that units came to and that waits has its own turn
        clusters = clusters[layers.since[layer][clusters] == 0]
        seed = streams.integer(self.seed, "split core", self.step, layer)
        pieces = split(
            layers, features, layer, clusters, units, self.prototypes, self.max_units, seed, self.propagate
        )
        threshold = self.merge_thresholds[layer - 1]
        merged = merge(layers, features, layer, pieces, threshold, self.correct_noise, self.propagate)
        self.splits[layer - 1] += len(pieces) - len(clusters)
        self.merges[layer - 1] += merged + emptied
        # not the batch alone has changed the clusters that are the next level's units, but what waited too
        if layer + 1 < self.levels:
            turns.mark(layers, layer, np.unique(layers.parent[layer - 1][units]), self.step)

    def labels(self, index: ArrayLike) -> NDArray[np.int64]:
        """Sample indices (B,), repeats allowed -> labels (L, B); row 0 is the sample itself."""
        node = self._index(index)
        rows = [node]
        for layer in range(self.levels - 1):
            node = self._layers.parent[layer][node].astype(np.int64)
            rows.append(node)
        return np.stack(rows)

    def clusters(self, level: int) -> Ids:
        """Ids of the clusters of a level, 2 … L, ascending."""
        return np.flatnonzero(self._layers.samples[level - 1] > 0).astype(np.int32)

    def sizes(self, level: int) -> Ids:
        """Samples of each of `clusters(level)`."""
        return self._layers.samples[level - 1][self.clusters(level)]

    def health(self, truth: NDArray[np.int64] | None = None) -> dict[str, float]:
        """Signals per level (raysurl.hierarchy.signals); `truth` (N,) labels judge the clusters and change nothing."""
        now = self.labels(np.arange(self.num_samples))[1:]
        found: dict[str, float] = {}
        units = self.num_samples
        for row, clusters in enumerate(now):
            values = signals.of_level(clusters, truth)
            values["children"], units = units / values["clusters"], int(values["clusters"])
            values |= {"splits": float(self.splits[row]), "merges": float(self.merges[row])}
            values["longest_wait"] = float(self.longest_wait[row])
            if self._looked.shape[1]:
                values["churn"] = 1 - signals.kept_together(self._looked[row].astype(np.int64), clusters)
            found |= {f"health/level{row + 2}_{name}": value for name, value in values.items()}
        self._looked = now.astype(np.int32)
        self.splits[:], self.merges[:], self.longest_wait[:] = 0, 0, 0
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and numbers; sums only of the clusters that keep one."""
        moves = np.concatenate([self.splits, self.merges, self.longest_wait])
        layers = []
        for layer in range(self.levels + 1):
            arrays = {name: torch.from_numpy(value.copy()) for name, value in self._stored(layer).items()}
            if layer < self.levels:
                arrays["sums"] = torch.from_numpy(self._layers.sums[layer][self._summed(layer)])
            layers.append(arrays)
        return {
            "shape": [self.num_samples, self.dim, self.levels],
            "features": torch.from_numpy(self._features.bits.view(np.int16).copy()),
            "layers": layers,
            "counters": [self.step, self._seen, *moves.tolist()],
            "looked": torch.from_numpy(self._looked.copy()),
            "recall": self.recall,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back exactly what `state_dict` gave; the shapes must agree."""
        shape = [int(n) for n in state["shape"]]
        if shape != [self.num_samples, self.dim, self.levels]:
            raise InputError(
                f"the stored hierarchy has (samples, dimensions, levels) = {tuple(shape)}, this run's"
                f" {(self.num_samples, self.dim, self.levels)}; resume with the same data and recipe"
            )
        self._begin()
        self._features.bits[:] = state["features"].numpy().view(np.uint16)
        # older checkpoints have further layers that are empty
        for layer, stored in enumerate(state["layers"][: self.levels + 1]):
            for name, value in self._stored(layer).items():
                if name in stored:  # older checkpoints know of nothing that waits
                    value[:] = stored[name].numpy()
            if layer < self.levels:
                self._layers.sums[layer][self._summed(layer)] = stored["sums"].numpy()
        self.step, self._seen, *moves = (int(n) for n in state["counters"])
        moves += [0] * (3 * (self.levels - 1) - len(moves))
        self.splits[:], self.merges[:], self.longest_wait[:] = np.reshape(moves, (3, self.levels - 1))
        self._looked = state["looked"].numpy().copy()
        self.recall = float(state["recall"])

    def _stored(self, layer: int) -> dict[str, NDArray[Any]]:
        """The arrays of a layer that a checkpoint holds as they are: of the root, its one node."""
        nodes = self.num_samples if layer < self.levels else 1
        arrays = {
            name: value[layer, :nodes]
            for name, value in self._layers._asdict().items()
            if name not in ("free_size", "sums")
        }
        return arrays | {"free_size": self._layers.free_size[layer : layer + 1]}

    def _summed(self, layer: int) -> NDArray[np.int64]:
        """The clusters of a layer that keep a sum."""
        return np.flatnonzero(self._layers.samples[layer] > 1) if layer else np.zeros(0, np.int64)

    def _index(self, index: ArrayLike) -> NDArray[np.int64]:
        samples = np.asarray(index).reshape(-1).astype(np.int64)
        outside = (samples < 0) | (samples >= self.num_samples)
        if outside.any():
            raise InputError(
                f"sample index {samples[outside][0]} lies outside the hierarchy's 0 … {self.num_samples - 1}"
            )
        return samples

    def _rows(self, features: ArrayLike, number: int | None) -> NDArray[np.float32]:
        """Features as fp32 rows, checked."""
        rows = np.asarray(features, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.dim or (number is not None and len(rows) != number):
            wanted = f"({'B' if number is None else number}, {self.dim})"
            raise InputError(f"features of shape {rows.shape} do not fit the hierarchy's {wanted}")
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise InputError(f"features are not finite, first in row {bad}; the hierarchy is as it was")
        return rows


def _half(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of unit rows in half precision."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(unit.astype(np.float16)).view(np.uint16)


def _check(num_samples: int, dim: int, levels: int, thresholds: Sequence[float]) -> None:
    if num_samples < 2 or dim < 1 or levels < 1:
        raise InputError(
            f"a hierarchy needs at least 2 samples, 1 dimension and 1 level, got {num_samples}, {dim} and {levels}"
        )
    if levels > num_samples:
        raise InputError(f"{levels} levels are more than {num_samples} samples can have clusters")
    if len(thresholds) != levels - 1:
        raise InputError(f"{levels} levels need {levels - 1} merge thresholds, got {len(thresholds)}")
    if any(not 0 < sigma < 1 for sigma in thresholds):
        raise InputError(f"merge thresholds are cosines between 0 and 1, got {tuple(thresholds)}")
    if any(a <= b for a, b in pairwise(thresholds)):
        raise InputError(f"merge thresholds must decrease from level to level, got {tuple(thresholds)}")
