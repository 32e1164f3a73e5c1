"""Offline clusters: every sample's label under each criterion, made anew from the features of the whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from raysurl.errors import InputError

ITERATIONS = 20


class LabelBank:
    """Spherical K-means per level (RCL, Table 4, arm K-means); labels stay as they are until the next `fit`.

    `shares`: number of clusters of each level above the samples, as a share of N, finest first: the paper's
    1,000,000, 500,000 and 250,000 of 1.28 million are 0.78, 0.39 and 0.195. The levels are clustered one by one,
    so they need not be nested (the paper: 73.9 % of the samples are).
    """

    def __init__(self, num_samples: int, *, shares: Sequence[float], seed: int) -> None:
        self.num_samples, self.seed = num_samples, seed
        self.sizes = [max(1, round(share * num_samples)) for share in shares]
        self.bank = np.zeros((len(self.sizes), num_samples), np.int64)

    def fit(self, features: NDArray[np.float32]) -> None:
        """Cluster unit features (N, D). Raises InputError if their number is another or one is not finite."""
        if len(features) != self.num_samples or not np.isfinite(features).all():
            raise InputError(
                f"clustering needs {self.num_samples} finite feature rows, got {features.shape} with"
                f" {int((~np.isfinite(features)).any(axis=1).sum())} rows that are not finite"
            )
        rows = np.ascontiguousarray(features, np.float32)
        for level, size in enumerate(self.sizes):
            kmeans = faiss.Kmeans(
                rows.shape[1],
                size,
                niter=ITERATIONS,
                spherical=True,
                seed=self.seed + level,
                min_points_per_centroid=1,
                max_points_per_centroid=self.num_samples,
            )
            kmeans.train(rows)
            self.bank[level] = kmeans.index.search(rows, 1)[1][:, 0]

    def update(self, index: Any, features: Any, *, step: int | None = None) -> None:
        """Labels do not follow single batches."""

    def labels(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample indices (B,) -> labels (1 + levels, B); row 0 is the sample itself."""
        return np.concatenate([np.asarray(index)[None], self.bank[:, index]])

    def state_dict(self) -> dict[str, Any]:
        return {"bank": torch.from_numpy(self.bank.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        bank = state["bank"].numpy()
        if bank.shape != self.bank.shape:
            raise InputError(f"the stored label bank is {bank.shape}, this run's {self.bank.shape}")
        self.bank = bank.copy()
