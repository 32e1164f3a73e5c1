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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.sparse import csr_array
from torch import Tensor

from raysurl import distributed
from raysurl.errors import InputError
from raysurl.functional import log_student_kernel, log_student_of_rows
from raysurl.method import Batch, Progress, Snapshot
from raysurl.methods.genurl.graphs import read_edges
from raysurl.methods.genurl.memory import POSITION
from raysurl.methods.genurl.similarity import (
    Edges,
    Rows,
    Scale,
    Symmetry,
    geodesics,
    lengths,
    similarity_graph,
)
from raysurl.neighbours import knn_graph

Distance = Literal["1-cos", "chord", "literal", "l2"]
FEW_DIMENSIONS = 8  # of which Euclidean distances are taken dimension by dimension, without a matrix product


@dataclass(frozen=True)
class StructureInputs:
    """What is known of a global batch: its size B, `graphs` name -> p (B, B), a `teacher`'s embeddings (B, D)."""

    size: int
    device: torch.device
    graphs: Mapping[str, Tensor]
    teacher: Tensor | None = None


def inputs_of(batch: Batch, snapshot: Snapshot) -> StructureInputs:
    """What is known of the global batch, from what each rank holds of its rows."""
    device = batch.index.device
    graphs = {}
    if snapshot:
        rows = {name: distributed.gather(value) for name, value in snapshot.items()}
        position = rows.pop(POSITION)  # where these rows stand among the columns: a batch may come in parts
        whole = all(block.shape[1] == len(position) for block in rows.values())  # and then in order
        graphs = rows if whole else {name: block.index_select(1, position) for name, block in rows.items()}
    teacher = batch.views.get("teacher")
    teacher = None if teacher is None else distributed.gather(teacher)
    return StructureInputs(distributed.joined_rows(batch.index), device, graphs, teacher)


class Structure(BaseModel):
    """`similarity` gives A_t κ (B, B) of a batch. Its weight α_t goes linearly from `weight` to `weight_end`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    from_graph: ClassVar[bool] = False  # its similarities are those of a graph over all samples, see `graph`

    kind: str
    weight: float = Field(1.0, ge=0)
    weight_end: float | None = Field(None, ge=0)  # None: as `weight`

    def alpha(self, progress: Progress) -> float:
        return linear(self.weight, self.weight if self.weight_end is None else self.weight_end, progress)

    def similarity(self, known: StructureInputs, nu: float) -> Tensor:
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

    def similarity(self, known: StructureInputs, nu: float) -> Tensor:
        same = torch.eye(known.size, device=known.device)
        return same * log_student_kernel(same.new_zeros(()), nu).exp()


class TeacherStructure(Structure):
    """κ(d/σ, ν_X) of the distances between a frozen network's embeddings of the same samples."""

    kind: Literal["teacher"] = "teacher"
    sigma: float = Field(1.0, gt=0)
    distance: Distance = "1-cos"

    def similarity(self, known: StructureInputs, nu: float) -> Tensor:
        if known.teacher is None or known.teacher.dim() != 2:
            raise InputError("the structure teacher needs the view 'teacher', embeddings (b, D) of the batch")
        return self.between(known.teacher, known.teacher, nu)

    def between(self, rows: Tensor, columns: Tensor, nu: float) -> Tensor:
        """p (A, B) of the teacher's embeddings (A, D) and (B, D)."""
        rows, columns = rows.float(), columns.float()
        return log_similarity(rows, columns, self.distance, mu=0.0, sigma=self.sigma, nu=nu).exp()


class Neighbours(Structure):
    """The k nearest neighbours of each sample in the raw input; see `similarity_graph` for μ and σ.

    Its weight is that of sec. IV-b, beside instances; for any other task see `without_instances`.
    """

    from_graph: ClassVar[bool] = True
    kind: Literal["knn"] = "knn"
    weight: float = Field(0.01, ge=0)
    weight_end: float | None = Field(0.0, ge=0)
    k: int = Field(15, ge=1)
    metric: Literal["euclidean", "cosine"] = "euclidean"  # cosine: the Euclidean distance of unit rows
    neighbours: int = Field(5, ge=3)  # nearest samples that decide σ
    scale: Scale = "search"
    sigma: float | None = Field(None, gt=0)  # None: from the data
    symmetry: Symmetry = "union"

    @model_validator(mode="after")
    def _check(self) -> Neighbours:
        if self.scale == "search" and self.sigma is None and self.neighbours > self.k:
            raise ValueError(f"neighbours={self.neighbours} must not be more than k={self.k}")
        return self

    def without_instances(self) -> Neighbours:
        """The raw input is then all there is, or stands beside a graph: α_t = 1 throughout where it is not given."""
        given = self.model_fields_set
        usual = {"weight": 1.0, "weight_end": self.weight if "weight" in given else 1.0}
        return self.model_copy(update={k: v for k, v in usual.items() if k not in given})

    def check(self, num_samples: int) -> None:
        if self.k >= num_samples:
            raise InputError(
                f"the structure knn needs more samples than its k={self.k} neighbours, there are {num_samples}"
            )

    def graph(self, features: Rows | None, num_samples: int, nu: float) -> csr_array:
        assert features is not None
        found = knn_graph(features, self.k, metric=self.metric)
        source = np.repeat(np.arange(num_samples), self.k)
        edges = Edges(source, found.indices.ravel(), found.distances.ravel())
        return _graph_of(self, edges, num_samples, nu)


class Graph(Structure):
    """A given graph: a file of edges between sample indices (see genurl.graphs), each once or both ways.

    Directed edges count both ways; self loops are left out, and an edge given twice counts once. A sample without
    edges, as all of an empty graph, is similar to none. `path` None: the edges that the data set comes with.
    The length of an edge: `features` the Euclidean distance of its samples' raw input, `given` the file's `distance`
    (E,), `equal` all alike, so that p = κ(0, ν_X). Pairs without an edge have p = 0; with `geodesic`, pairs joined by
    a path of at most that many mean edges' length count too, at the length of the shortest.
    """

    from_graph: ClassVar[bool] = True

    kind: Literal["graph"] = "graph"
    path: str | None = None
    length: Literal["features", "given", "equal"] = "features"
    geodesic: float | None = Field(None, gt=0)
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
        distance = np.full(len(edges), 0.0 if self.geodesic is None else 1.0) if given is None else given
        if self.length == "features":
            assert features is not None
            distance = lengths(features, edges)
        both = np.concatenate([edges, edges[:, ::-1]])
        pairs, first = np.unique(both, axis=0, return_index=True)
        found = Edges(pairs[:, 0], pairs[:, 1], np.tile(distance, 2)[first])
        if self.geodesic is not None:
            found = geodesics(found, num_samples, self.geodesic)
        return _graph_of(self, found, num_samples, nu)

    def edges(self, num_samples: int) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Edges (E, 2) without self loops, and their given lengths (E,). Raises InputError for an unusable file."""
        key = "method.structures.graph.path"
        if self.path is None:
            raise InputError(f"the data come with no graph; name a file of edges with {key}=")
        return read_edges(self.path, num_samples, key, lengths=self.length == "given")


AnyStructure = Annotated[Instance | Neighbours | Graph | TeacherStructure, Field(discriminator="kind")]


def with_columns(
    structures: Sequence[Structure],
    weights: Mapping[str, float | Tensor],
    teacher: Tensor,
    more: Tensor,
    nu: float,
) -> Tensor:
    """p_X (B, B + K) of instances and a teacher's embeddings (B, D), and of `more` of them (K, D) that are not here."""
    p = teacher.new_zeros((len(teacher), len(teacher) + len(more)))
    for s in structures:
        if isinstance(s, TeacherStructure):
            found = s.between(teacher, torch.cat([teacher, more]), nu)
        else:
            found = F.pad(s.similarity(StructureInputs(len(teacher), teacher.device, {}), nu), (0, len(more)))
        p = p + weights[f"alpha_{s.kind}"] * found
    return p


def linear(start: float, end: float, progress: Progress) -> float:
    """From `start` at the first step towards `end` at the end of the run."""
    return start + (end - start) * progress.step / progress.total_steps


def log_similarity(a: Tensor, b: Tensor, kind: Distance, *, mu: float, sigma: float, nu: float) -> Tensor:
    """log κ((d − μ)₊/σ, ν) of the distances of rows (A, D), (B, D) -> (A, B)."""
    if kind == "l2" and not mu and a.shape[1] <= FEW_DIMENSIONS:
        return log_student_of_rows(a / sigma, b / sigma, nu)
    d = pairwise_distance(a, b, kind)
    return log_student_kernel(((d - mu).clamp(min=0) if mu else d) / sigma, nu)


def pairwise_distance(a: Tensor, b: Tensor, kind: Distance) -> Tensor:
    """fp32 rows (A, D), (B, D) -> (A, B). `literal` is the paper's d = cos, a similarity; `l2` does not normalise."""
    with torch.autocast(a.device.type, enabled=False):  # which would take products in half precision
        if kind == "l2":
            return _euclidean(a, b)
        cosine = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    if kind == "literal":
        return cosine
    if kind == "1-cos":
        return 1 - cosine
    return (2 - 2 * cosine).clamp(min=1e-12).sqrt()  # the root of exactly 0 has no gradient


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Distances of few dimensions from the differences, of many by a matrix product of rows around their mean.

    The product loses what is below 1e-7 of the largest square; a distance of zero has no gradient either way.
    """
    if a.shape[1] <= FEW_DIMENSIONS:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    mean = a.detach().mean(dim=0)
    a, b = a - mean, b - mean
    squared = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T
    return squared.clamp(min=1e-12).sqrt()


def _graph_of(structure: Neighbours | Graph, edges: Edges, num_samples: int, nu: float) -> csr_array:
    s = structure
    return similarity_graph(
        edges, num_samples, nu=nu, scale=s.scale, neighbours=s.neighbours, sigma=s.sigma, symmetry=s.symmetry
    )  # fmt: skip
