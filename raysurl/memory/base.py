"""What every memory answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl.method import Answer, Progress, Snapshot


class Memory(ABC):
    """What a method remembers between steps: plain Python, run in-process or inside the memory actor.

    The class says what can be asked of it, so that nothing need be built to know. `answers`: a step also reads what
    only the whole memory can tell, `answer` to the indices of its batch. `staleness`: updates that a step's memory
    may lag behind, unless the recipe says. `per_sample`: its features (N, D) have a row per sample index.
    """

    answers: ClassVar[bool] = False
    staleness: ClassVar[int] = 0
    per_sample: ClassVar[bool] = False
    has_neighbours: ClassVar[bool] = False
    has_clusters: ClassVar[bool] = False

    def prepare(self) -> None:  # noqa: B027
        """What is to be done once, early and beside the first steps, where there are cores to spare."""

    @abstractmethod
    def push(self, keys: Tensor, index: Tensor) -> None:
        """Add keys (V·B, D) of the global batch, ordered by (view, position), with their indices (V·B,)."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The tensors that every step reads."""

    @abstractmethod
    def mirror(self, device: torch.device) -> Memory:
        """A copy on a device of what every step reads, kept equal by equal pushes."""

    def answer(self, index: Tensor, step: int) -> Answer:
        """For the global batch `index` (B,) of a step; random picks are a function of (seed, step)."""
        return {}

    def refresh(self, features: Tensor | None, progress: Progress) -> None:  # noqa: B027
        """Rebuild from features (N, D) of the whole data set, in index order; None where the method embeds nothing."""

    def neighbour_graph(self) -> NDArray[np.int64] | None:
        """The neighbours (N, k) of each sample, best first, −1 = no further one; None without `has_neighbours`."""
        return None

    def cluster_labels(self) -> NDArray[np.int64] | None:
        """Cluster labels (levels, N) of all samples, finest first; None as long as there are none."""
        return None

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]:
        """Signals `health/…` for the record; labels (N,), −1 = none, only judge what memory found without them."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave. Raises InputError where it is of another shape."""
