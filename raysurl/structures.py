"""Structures: what is known of which samples belong together, as similarities p_X between them (GenURL sec. IV).

A task of GenURL is its list of structures; method and loss stay the same. Each one is also its own entry in a recipe,
`method.structures=[{kind: instance}, {kind: knn, k: 10}]`, and adds α_t A_t κ to p_X = Σ_t α_t A_t κ(d̃_t, ν_X).

instance   the two views of an image belong together: A = I, d = 0 (self-supervised learning)
knn        nearest neighbours in the raw input (dimension reduction, node features)
graph      a given graph (graph embedding)
teacher    a frozen network's embeddings (knowledge distillation)

Letters: B global batch, N samples, D features, E edges.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.sparse import csr_array
from torch import Tensor

from raysurl.data import storage
from raysurl.errors import InputError
from raysurl.functional import log_student_kernel
from raysurl.graph_memory import Edges, Rows, Scale, Symmetry, similarity_graph
from raysurl.method import Progress
from raysurl.neighbours import knn_graph

Distance = Literal["1-cos", "chord", "literal", "l2"]


@dataclass(frozen=True)
class Known:
    """What is known of a global batch: its size B, `graphs` name -> p (B, B), a `teacher`'s embeddings (B, D)."""

    size: int
    device: torch.device
    graphs: Mapping[str, Tensor]
    teacher: Tensor | None = None


class Structure(BaseModel):
    """`similarity` gives A_t κ (B, B) of a batch. Its weight α_t goes linearly from `weight` to `weight_end`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    from_graph: ClassVar[bool] = False  # its similarities are those of a graph over all samples, see `graph`

    kind: str
    weight: float = Field(1.0, ge=0)
    weight_end: float | None = Field(None, ge=0)  # None: as `weight`

    def alpha(self, progress: Progress) -> float:
        return linear(self.weight, self.weight if self.weight_end is None else self.weight_end, progress)

    def similarity(self, known: Known, nu: float) -> Tensor:
        return known.graphs[self.kind]

    def check(self, num_samples: int) -> None:
        """Raises InputError where it cannot be made of so many samples."""

    def needs_features(self) -> bool:
        """Whether `graph` takes the raw input of all samples."""
        return self.from_graph

    def graph(self, features: Rows | None, num_samples: int, nu: float) -> csr_array:
        """Features (N, D) -> A_t κ (N, N), sparse."""
        raise NotImplementedError


class Instance(Structure):
    """A = I between the two views: a pair is the same image or unknown. p = κ(0, ν_X) on the diagonal."""

    kind: Literal["instance"] = "instance"

    def similarity(self, known: Known, nu: float) -> Tensor:
        same = torch.eye(known.size, device=known.device)
        return same * log_student_kernel(same.new_zeros(()), nu).exp()


class Teacher(Structure):
    """κ(d/σ, ν_X) of the distances between a frozen network's embeddings of the same samples."""

    kind: Literal["teacher"] = "teacher"
    sigma: float = Field(1.0, gt=0)
    distance: Distance = "1-cos"

    def similarity(self, known: Known, nu: float) -> Tensor:
        if known.teacher is None or known.teacher.dim() != 2:
            raise InputError("the structure teacher needs the view 'teacher', embeddings (b, D) of the batch")
        d = pairwise_distance(known.teacher.float(), known.teacher.float(), self.distance)
        return log_student_kernel(d / self.sigma, nu).exp()


class Neighbours(Structure):
    """The k nearest neighbours of each sample in the raw input, Euclidean; see `similarity_graph` for μ and σ."""

    from_graph: ClassVar[bool] = True
    kind: Literal["knn"] = "knn"
    weight: float = Field(0.01, ge=0)
    weight_end: float | None = Field(0.0, ge=0)
    k: int = Field(15, ge=1)
    neighbours: int = Field(5, ge=3)  # nearest samples that decide σ
    scale: Scale = "search"
    sigma: float | None = Field(None, gt=0)  # None: from the data
    symmetry: Symmetry = "union"

    @model_validator(mode="after")
    def _check(self) -> Neighbours:
        if self.scale == "search" and self.sigma is None and self.neighbours > self.k:
            raise ValueError(f"neighbours={self.neighbours} must not be more than k={self.k}")
        return self

    def check(self, num_samples: int) -> None:
        if self.k >= num_samples:
            raise InputError(
                f"the structure knn needs more samples than its k={self.k} neighbours, there are {num_samples}"
            )

    def graph(self, features: Rows | None, num_samples: int, nu: float) -> csr_array:
        assert features is not None
        found = knn_graph(features, self.k, metric="euclidean")
        source = np.repeat(np.arange(num_samples), self.k)
        edges = Edges(source, found.indices.ravel(), found.distances.ravel())
        return _graph_of(self, edges, num_samples, nu)


class Graph(Structure):
    """A given graph: an npz file of `edges` (E, 2) sample indices, each edge once or both ways.

    The length of an edge: `features` the Euclidean distance of its samples' raw input, `given` the file's `distance`
    (E,), `equal` all alike, so that p = κ(0, ν_X). Pairs without an edge have p = 0.
    """

    from_graph: ClassVar[bool] = True

    kind: Literal["graph"] = "graph"
    path: str
    length: Literal["features", "given", "equal"] = "features"
    neighbours: int = Field(5, ge=3)
    scale: Scale = "search"
    sigma: float | None = Field(None, gt=0)
    symmetry: Symmetry = "union"

    def needs_features(self) -> bool:
        return self.length == "features"

    def check(self, num_samples: int) -> None:
        self.edges(num_samples)

    def graph(self, features: Rows | None, num_samples: int, nu: float) -> csr_array:
        edges, given = self.edges(num_samples)
        distance = np.zeros(len(edges)) if given is None else given
        if self.length == "features":
            assert features is not None
            distance = np.sqrt(np.square(features[edges[:, 0]] - features[edges[:, 1]]).sum(axis=1))
        both = np.concatenate([edges, edges[:, ::-1]])
        pairs, first = np.unique(both, axis=0, return_index=True)
        return _graph_of(self, Edges(pairs[:, 0], pairs[:, 1], np.tile(distance, 2)[first]), num_samples, nu)

    def edges(self, num_samples: int) -> tuple[NDArray[np.int64], NDArray[Any] | None]:
        """Edges (E, 2) without self loops, and their given lengths (E,). Raises InputError for an unusable file."""
        key = "method.structures.graph.path"
        if storage.kind(self.path, key) != "file":
            raise InputError(f"{key}={self.path} must be an npz file with the array edges (E, 2)")
        try:
            with np.load(io.BytesIO(storage.read_bytes(self.path, "")), allow_pickle=False) as file:
                edges = np.asarray(file["edges"])
                given = np.asarray(file["distance"], np.float64) if self.length == "given" else None
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{key}={self.path} is not an npz file of a graph: {error}") from None
        if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
            raise InputError(
                f"{key}={self.path}: edges must be integers (E, 2), not {edges.dtype} {edges.shape}"
            )
        if len(edges) and not (edges.min() >= 0 and edges.max() < num_samples):
            raise InputError(f"{key}={self.path}: edges must lie in 0 … {num_samples - 1}")
        if given is not None and (
            given.shape != edges.shape[:1] or not (np.isfinite(given) & (given >= 0)).all()
        ):
            raise InputError(
                f"{key}={self.path}: distance must be a finite length ≥ 0 for each of {len(edges)} edges"
            )
        other = edges[:, 0] != edges[:, 1]
        return edges[other].astype(np.int64), None if given is None else given[other]


AnyStructure = Annotated[Instance | Neighbours | Graph | Teacher, Field(discriminator="kind")]


def linear(start: float, end: float, progress: Progress) -> float:
    """From `start` at the first step towards `end` at the end of the run."""
    return start + (end - start) * progress.step / progress.total_steps


def pairwise_distance(a: Tensor, b: Tensor, kind: Distance) -> Tensor:
    """fp32 rows (A, D), (B, D) -> (A, B). `literal` is the paper's d = cos, a similarity; `l2` does not normalise."""
    with torch.autocast(a.device.type, enabled=False):  # which would take products in half precision
        if kind == "l2":
            return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        cosine = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    if kind == "literal":
        return cosine
    if kind == "1-cos":
        return 1 - cosine
    return (2 - 2 * cosine).clamp(min=1e-12).sqrt()  # the root of exactly 0 has no gradient


def _graph_of(structure: Neighbours | Graph, edges: Edges, num_samples: int, nu: float) -> csr_array:
    s = structure
    return similarity_graph(
        edges, num_samples, nu=nu, scale=s.scale, neighbours=s.neighbours, sigma=s.sigma, symmetry=s.symmetry
    )  # fmt: skip
