"""GenURL's memory: the similarity graphs of a run, which tell each step the part of its batch.

Letters: N samples, k neighbours, B global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from raysurl.errors import InputError
from raysurl.memory.base import Memory
from raysurl.method import Answer, Progress, Snapshot
from raysurl.methods.genurl.similarity import Rows

POSITION = "position"  # in an answer: where in the global batch each row stands
FOLLOWED = 16  # neighbours of a sample that train.sampler=neighbours puts beside it

Make = Callable[[Rows | None], csr_array]
"""Features (N, D) of all samples, None where no graph needs them -> p (N, N), sparse."""


class GraphMemory(Memory):
    """The similarity graphs of a run by name, made from features of the whole data set before the first step.

    It remembers nothing of single steps. Until it is made, a graph has no edges.
    """

    answers: ClassVar[bool] = True
    has_neighbours: ClassVar[bool] = True

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

    def neighbour_graph(self) -> NDArray[np.int64]:
        """The graphs together -> (N, k ≤ FOLLOWED) the most similar of each sample, −1 = none left."""
        graphs = list(self.graphs.values())
        together = csr_array(sum(graphs[1:], graphs[0]))
        degree = np.diff(together.indptr)
        source = np.repeat(np.arange(len(degree)), degree)
        order = np.lexsort((together.indices, -together.data, source))
        rank = np.arange(len(source)) - np.repeat(together.indptr[:-1], degree)
        near = rank < FOLLOWED
        table = np.full((len(degree), min(FOLLOWED, int(degree.max(initial=1)))), -1, np.int64)
        table[source[near], rank[near]] = together.indices[order][near]
        return table

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
