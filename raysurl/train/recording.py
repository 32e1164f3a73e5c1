"""Work for a GPU that is recorded once and replayed: the same kernels on the same addresses, started by one call."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class StepRecorder(Protocol):
    """One piece of work. What it reads and writes must stay where it was when it was recorded."""

    def aside(self, body: Callable[[], T]) -> T:
        """Run it unrecorded, as it has to be run a few times before it is recorded."""

    def record(self, body: Callable[[], T]) -> T:
        """Record it, without doing it; what it returned is set by each replay."""

    def replay(self) -> None: ...


class CudaGraph:
    """A CUDA graph. Other threads may work with the GPU while it is recorded."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._stream = _side_stream(torch.cuda.current_device())

    def aside(self, body: Callable[[], T]) -> T:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            out = body()
        torch.cuda.current_stream().wait_stream(self._stream)
        return out

    def record(self, body: Callable[[], T]) -> T:
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            return body()

    def replay(self) -> None:
        self._graph.replay()


@lru_cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The one on which everything is warmed up and recorded: libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)
