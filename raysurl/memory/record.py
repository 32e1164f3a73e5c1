"""The system of record behind the mirrors of memory, and its form in one process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl.memory.base import Memory
from raysurl.method import Answer, Progress


class MemoryLostError(RuntimeError):
    """The actor died, refused a call or did not answer: the worker group starts again from its checkpoint."""


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
    """The memory in this process, for runtime=local: a thread follows the updates, one after the other."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._thread = ThreadPoolExecutor(1, "memory")
        self._update: Future[Answer] | None = None

    def _rested(self) -> Memory:
        """The memory, once its thread has followed all updates."""
        self.collect()
        return self.memory

    def restore(self, version: int, state: dict[str, Any] | None) -> None:
        if state is not None:
            self._rested().load_state_dict(state)

    def push(self, version: int, keys: Tensor, index: Tensor, ask: tuple[Tensor, int] | None) -> None:
        self.collect()
        host, arrived = _to_host(keys, index)
        self._update = self._thread.submit(self._follow, host, arrived, ask)

    def _follow(
        self, host: tuple[Tensor, ...], arrived: Callable[[], None], ask: tuple[Tensor, int] | None
    ) -> Answer:
        arrived()
        self.memory.push(*host)
        return self.memory.answer(*ask) if ask else {}

    def collect(self) -> Answer:
        return self._update.result() if self._update else {}

    def answer(self, index: Tensor, step: int) -> Answer:
        return self._rested().answer(index, step)

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        self._rested().refresh(features, progress)

    def refreshed(self) -> bool:
        return True

    def neighbour_graph(self) -> NDArray[np.int64] | None:
        return self._rested().neighbour_graph()

    def cluster_labels(self) -> NDArray[np.int64] | None:
        return self._rested().cluster_labels()

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]:
        return self._rested().health(labels)

    def state(self, version: int) -> dict[str, Any]:
        return self._rested().state_dict()


def _to_host(*given: Tensor) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """Copies on the host, complete once the function returns, which another thread may call; nobody else waits."""
    if not given[0].is_cuda:
        return tuple(given), lambda: None
    host = tuple(torch.empty_like(x, device="cpu", pin_memory=True) for x in given)
    for there, x in zip(host, given, strict=True):
        there.copy_(x, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived.synchronize
