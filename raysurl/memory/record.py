"""The system of record behind the mirrors of memory, and its form in one process."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysurl.memory.base import Memory
from raysurl.method import Answer, Progress


class MemoryRecord(Protocol):
    """The memory actor as rank 0 sees it, or the memory itself in the same process."""

    def restore(self, version: int, state: dict[str, Any] | None) -> None:
        """Hold `state` as it was after update `version`; None: as a fresh run begins."""

    def push(self, version: int, keys: Tensor, index: Tensor, ask: tuple[Tensor, int] | None) -> None:
        """Send update `version`, and the (indices, step) whose answer is to be computed after it."""

    def collect(self) -> Answer:
        """Wait for what was sent; the answer to what was asked with it."""

    def answer(self, index: Tensor, step: int) -> Answer: ...

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        """Begin to rebuild, from features (N, D) where the method embeds the data set for it."""

    def refreshed(self) -> bool:
        """Whether that is done."""

    def neighbour_graph(self) -> NDArray[np.int64] | None: ...

    def cluster_labels(self) -> NDArray[np.int64] | None: ...

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]: ...

    def state(self, version: int) -> dict[str, Any]: ...


class LocalRecord:
    """The memory in this process, for runtime=local."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._answer: Answer = {}

    def restore(self, version: int, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.memory.load_state_dict(state)

    def push(self, version: int, keys: Tensor, index: Tensor, ask: tuple[Tensor, int] | None) -> None:
        self.memory.push(keys.cpu(), index.cpu())
        self._answer = self.memory.answer(*ask) if ask else {}

    def collect(self) -> Answer:
        return self._answer

    def answer(self, index: Tensor, step: int) -> Answer:
        return self.memory.answer(index, step)

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        self.memory.refresh(features, progress)

    def refreshed(self) -> bool:
        return True

    def neighbour_graph(self) -> NDArray[np.int64] | None:
        return self.memory.neighbour_graph()

    def cluster_labels(self) -> NDArray[np.int64] | None:
        return self.memory.cluster_labels()

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]:
        return self.memory.health(labels)

    def state(self, version: int) -> dict[str, Any]:
        return self.memory.state_dict()
