"""Which clusters RCL takes its criteria from: the online hierarchy, or one of the offline arms of its Table 4."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from raysurl.method import MethodConfig
from raysurl.methods.rcl.memory import Clusters
from raysurl.methods.rcl.offline import DensityLabels, KMeansLabels

# Of up to three levels of clusters, finest first. The radii of the paper's DBSCAN are .6, .7 and .8 (Table 4); two
# unit vectors at distance r have the cosine 1 − r²/2. Its K-means has 1,000,000, 500,000 and 250,000 clusters.
THRESHOLDS = (0.82, 0.755, 0.68)
SHARES = (0.78, 0.39, 0.195)


PLAIN = "online clusters by the paper's text"


class Clustering(MethodConfig):
    """`levels` is H, the number of criteria; the sample itself is the first of them if `instance_level`."""

    kind: Literal["online", "dbscan", "kmeans"] = "online"  # online, or anew before each epoch
    levels: int = Field(3, ge=1, le=4)  # criteria
    instance_level: bool = True  # the sample itself is the first of them
    merge_thresholds: tuple[
        float, ...
    ] = ()  # cosines per level of clusters, decreasing; () is the last of THRESHOLDS
    shares: tuple[float, ...] = ()  # kmeans: clusters per level as shares of N; () is the last of SHARES
    mode: Literal["nearest", "label_propagation"] = "nearest"  # how a changed vector finds its cluster
    prototypes: int = Field(16, ge=2)  # most pieces that a cluster is split into
    relocate: bool = True  # samples move to the nearest cluster
    correct_noise: bool = True  # cosines of noisy centres are corrected
    max_clusters: int | None = Field(
        None, ge=1
    )  # most clusters per level that an update reworks, in turn; None: as many as its time allows
    max_units: int = Field(256, ge=2)  # most children among which density peaks are sought
    min_points: int = Field(4, ge=1)  # of DBSCAN, itself included
    num_neighbours: int = Field(32, ge=1)  # of the kNN graph under DBSCAN

    @property
    def depth(self) -> int:
        """Levels of clusters."""
        return self.levels - self.instance_level

    def rule(self) -> str:
        """What makes the labels, and how it departs from the paper's text."""
        if not self.depth:
            return "no clusters"
        if self.kind != "online":
            return f"{'K-means' if self.kind == 'kmeans' else 'DBSCAN'} before each epoch, the paper's offline arm"
        ours = [
            name
            for name, used in (("relocation", self.relocate), ("noise correction", self.correct_noise))
            if used
        ]
        ours += [f"up to {self.prototypes} pieces a split"] * (self.prototypes != 2)
        ours += ["label propagation"] * (self.mode != "nearest")
        if self.max_clusters is not None:
            ours.append(f"at most {self.max_clusters} clusters a step")
        return f"online clusters with {', '.join(ours)}, beyond the paper's text" if ours else PLAIN

    @model_validator(mode="after")
    def _check(self) -> Clustering:
        for name, given in (("merge_thresholds", self.merge_thresholds), ("shares", self.shares)):
            if given and len(given) != self.depth:
                raise ValueError(
                    f"{name} needs one value per level of clusters, {self.depth}, got {len(given)}"
                )
            if any(not 0 < value < 1 for value in given):
                raise ValueError(f"{name} are numbers between 0 and 1, got {given}")
            if any(a <= b for a, b in pairwise(given)):
                raise ValueError(f"{name} must decrease from level to level, got {given}")
        if self.depth > len(THRESHOLDS) and not (
            self.shares if self.kind == "kmeans" else self.merge_thresholds
        ):
            raise ValueError(f"{self.depth} levels of clusters have no default thresholds; name them")
        return self

    def of_levels(self, given: tuple[float, ...], default: tuple[float, ...]) -> tuple[float, ...]:
        return given or default[len(default) - self.depth :]


def make_clusters(settings: Clustering, num_samples: int, dim: int, seed: int) -> Clusters:
    """The clusters of a run, still without a sample in them."""
    return _KINDS[settings.kind](settings, num_samples, dim, seed)


def _online(s: Clustering, num_samples: int, dim: int, seed: int) -> Clusters:
    from raysurl.hierarchy import Hierarchy

    return Hierarchy(
        num_samples,
        dim,
        levels=s.depth + 1,
        merge_thresholds=s.of_levels(s.merge_thresholds, THRESHOLDS),
        mode=s.mode,
        prototypes=s.prototypes,
        relocate=s.relocate,
        correct_noise=s.correct_noise,
        max_clusters=s.max_clusters,
        max_units=s.max_units,
        min_points=s.min_points,
        num_neighbours=s.num_neighbours,
        seed=seed,
    )


def _dbscan(s: Clustering, num_samples: int, dim: int, seed: int) -> Clusters:
    radii = [float(np.sqrt(2 - 2 * sigma)) for sigma in s.of_levels(s.merge_thresholds, THRESHOLDS)]
    return DensityLabels(
        num_samples, radii=radii, seed=seed, min_points=s.min_points, num_neighbours=s.num_neighbours
    )


def _kmeans(s: Clustering, num_samples: int, dim: int, seed: int) -> Clusters:
    return KMeansLabels(num_samples, shares=s.of_levels(s.shares, SHARES), seed=seed)


_KINDS: dict[str, Callable[[Clustering, int, int, int], Clusters]] = {
    "online": _online,
    "dbscan": _dbscan,
    "kmeans": _kmeans,
}
