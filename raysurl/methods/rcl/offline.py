"""Offline clusters: every sample's label under each criterion, made anew from the features of the whole data set.

The two offline arms of RCL's Table 4: `KMeansLabels` by K-means, `DensityLabels` by DBSCAN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from raysurl import streams
from raysurl.errors import InputError
from raysurl.hierarchy import dbscan
from raysurl.hierarchy.signals import of_level
from raysurl.neighbours import knn_graph

ITERATIONS = 20


class OfflineLabels:
    """One label per sample and level above the samples; labels stay as they are until the next `fit`.

    A subclass says how to cluster: `cluster`, unit rows (N, D) -> labels (levels, N) int64, finest level first. The
    levels are clustered one by one, so they need not be nested.
    """

    def __init__(self, num_samples: int, *, levels: int, seed: int) -> None:
        self.num_samples, self.seed = num_samples, seed
        self.bank = np.zeros((levels, num_samples), np.int64)

    def cluster(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        raise NotImplementedError

    def fit(self, features: NDArray[np.float32]) -> None:
        """Cluster unit features (N, D). Raises InputError if their number is another or one is not finite."""
        if len(features) != self.num_samples or not np.isfinite(features).all():
            raise InputError(
                f"clustering needs {self.num_samples} finite feature rows, got {features.shape} with"
                f" {int((~np.isfinite(features)).any(axis=1).sum())} rows that are not finite"
            )
        self.bank = self.cluster(np.ascontiguousarray(features, np.float32))

    def update(self, index: Any, features: Any, *, step: int | None = None) -> None:
        """Labels do not follow single batches."""

    def labels(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample indices (B,) -> labels (1 + levels, B); row 0 is the sample itself."""
        return np.concatenate([np.asarray(index)[None], self.bank[:, index]])

    def health(self, truth: NDArray[np.int64] | None = None) -> dict[str, float]:
        """Signals per level above the samples, as a hierarchy's."""
        levels = [of_level(clusters, truth) for clusters in self.bank]
        return {f"health/level{i + 2}_{k}": v for i, level in enumerate(levels) for k, v in level.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"bank": torch.from_numpy(self.bank.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        bank = state["bank"].numpy()
        if bank.shape != self.bank.shape:
            raise InputError(f"the stored label bank is {bank.shape}, this run's {self.bank.shape}")
        self.bank = bank.copy()


class KMeansLabels(OfflineLabels):
    """Spherical K-means per level (RCL, Table 4, arm K-means).

    `shares`: number of clusters of each level above the samples, as a share of N, finest first: the paper's
    1,000,000, 500,000 and 250,000 of 1.28 million are 0.78, 0.39 and 0.195. (The paper: 73.9 % of the samples obey
    the hierarchy.)
    """

    def __init__(self, num_samples: int, *, shares: Sequence[float], seed: int) -> None:
        super().__init__(num_samples, levels=len(shares), seed=seed)
        self.sizes = [max(1, round(share * num_samples)) for share in shares]

    def cluster(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        bank = np.empty_like(self.bank)
        for level, size in enumerate(self.sizes):
            kmeans = faiss.Kmeans(
                rows.shape[1],
                size,
                niter=ITERATIONS,
                spherical=True,
                seed=streams.integer(self.seed, "kmeans", level),
                min_points_per_centroid=1,
                max_points_per_centroid=self.num_samples,
            )
            kmeans.train(rows)
            bank[level] = kmeans.index.search(rows, 1)[1][:, 0]
        return bank


class DensityLabels(OfflineLabels):
    """DBSCAN per level (RCL, Table 4, arm DBSCAN), on one graph of `num_neighbours` neighbours for all levels.

    `radii`: Euclidean distance of unit rows, ascending: the paper's 0.8, 0.7 and 0.6, finest clusters first.
    `min_points`: what makes a core sample, itself included. Noise becomes clusters of one sample. No majority vote
    makes the levels nested. (The paper: 97.3 % of the samples obey the hierarchy.)
    `recall`: what share of its neighbours the last graph has, None before the first.

    Raises InputError if the radii are not positive and ascending, or if a graph of so few neighbours cannot tell
    which samples are core samples.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        radii: Sequence[float],
        seed: int,
        min_points: int = 4,
        num_neighbours: int = 32,
    ) -> None:
        super().__init__(num_samples, levels=len(radii), seed=seed)
        dbscan.check_radii(radii)
        self.radii, self.min_points = radii, min_points
        self.num_neighbours = min(num_neighbours, num_samples - 1)
        if self.num_neighbours < max(1, min_points - 1):
            raise InputError(
                f"DBSCAN with min_points={min_points} needs a graph of at least {max(1, min_points - 1)} neighbours:"
                f" raise num_neighbours={num_neighbours} or cluster more than {num_samples} samples"
            )
        self.recall: float | None = None

    def cluster(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        graph = knn_graph(rows, self.num_neighbours, seed=self.seed)
        self.recall = graph.recall
        levels = [dbscan.dbscan(graph, radius=r, min_points=self.min_points) for r in self.radii]
        return np.array([dbscan.singletons(labels) for labels in levels], np.int64).reshape(self.bank.shape)
