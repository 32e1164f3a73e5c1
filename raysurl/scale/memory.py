"""The memory actor: the plain memory class, wrapped once. Rank 0's handle on it is raysurl.scale.record.

The driver creates the actor, so it outlives a restart of the worker group and dies with the driver. Only rank 0
calls it. Every message carries a generation (one per start of the training function) and a version (the number of
updates applied), so that nothing is applied twice, skipped, or accepted from a worker that has been replaced:

  restore(generation, version, state)   the training function's first call; whatever the actor held is gone
  push(generation, version, …, ask)     applied if version = held + 1, answered again if = held, else refused
  answer, refresh, health, state, …     refused unless everything up to the given version has been applied

An actor that has restarted holds nothing and refuses everything until `restore`; rank 0's handle restores it and
replays what it had sent since.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle
from torch import Tensor

from raysurl.memory.base import Memory
from raysurl.method import Progress

Array = NDArray[Any]
Ask = tuple[Array, int]  # sample indices (B,) of a global batch, and its step


class MemoryActor:
    """One per run; holds the authoritative memory. numpy arrays at the boundary."""

    def __init__(self, make: Callable[[], Memory | None]) -> None:
        self._make = make
        self._memory: Memory | None = None
        self._generation, self._version = -1, -1

    def new_generation(self) -> int:
        """A number larger than every earlier one, also of a life before a restart; older ones are refused now."""
        self._generation = max(self._generation + 1, time.time_ns())
        self._memory = None
        return self._generation

    def restore(self, generation: int, version: int, state: dict[str, Any] | None) -> None:
        if generation < self._generation:
            raise StaleCallError(f"generation {generation} was replaced by {self._generation}")
        memory = self._make()
        assert memory is not None
        if state is not None:
            memory.load_state_dict(to_tensors(state))
        self._memory = memory
        self._generation, self._version = generation, version

    def push(self, generation: int, version: int, keys: Array, index: Array, ask: Ask | None) -> Any:
        memory = self._held(generation)
        if version == self._version + 1:
            # arrays arrive read-only
            memory.push(torch.from_numpy(keys.copy()), torch.from_numpy(index.copy()))
            self._version = version
        elif version != self._version:
            raise StaleCallError(f"update {version} does not follow {self._version}")
        return self.answer(generation, version, ask) if ask else {}

    def answer(self, generation: int, version: int, ask: Ask) -> Any:
        index, step = ask
        return to_arrays(self._held(generation, version).answer(torch.from_numpy(index.copy()), step))

    def refresh(self, generation: int, version: int, features: Array | None, progress: Progress) -> None:
        rows = None if features is None else torch.from_numpy(features)
        self._held(generation, version).refresh(rows, progress)

    def neighbour_graph(self, generation: int, version: int) -> Array | None:
        return self._held(generation, version).neighbour_graph()

    def cluster_labels(self, generation: int, version: int) -> Array | None:
        return self._held(generation, version).cluster_labels()

    def health(self, generation: int, version: int, labels: Array | None) -> dict[str, float]:
        return self._held(generation, version).health(labels)

    def state(self, generation: int, version: int) -> dict[str, Any]:
        return to_arrays(self._held(generation, version).state_dict())

    def _held(self, generation: int, version: int | None = None) -> Memory:
        if (
            generation < self._generation
        ):  # first: a replaced group must not restore a memory that is not its own
            raise StaleCallError(f"generation {generation} is not the current one, {self._generation}")
        if self._memory is None:
            raise RestartedError("the memory actor has restarted and holds nothing until `restore`")
        if version not in (None, self._version):
            raise StaleCallError(f"the memory is at update {self._version}, not {version}")
        return self._memory


class StaleCallError(RuntimeError):
    """A call that the actor refuses."""


class RestartedError(StaleCallError):
    """A call to an actor that has begun a new life and was not restored yet."""


def create(make: Callable[[], Memory | None]) -> ActorHandle:
    """Start the run's actor from the driver. It takes no CPU share of its own: its work is a copy of the new keys."""
    options = {
        "num_cpus": 0,
        "max_concurrency": 1,
        "max_restarts": -1,
        "max_task_retries": 0,
        "name": f"raysurl-memory-{uuid.uuid4().hex[:8]}",
    }
    return ray.remote(MemoryActor).options(**options).remote(make)


def to_arrays(state: Any) -> Any:
    """Tensors to numpy, through dicts, lists and tuples."""
    if isinstance(state, Tensor):
        return state.cpu().numpy()
    if isinstance(state, dict):
        return {k: to_arrays(v) for k, v in state.items()}
    return type(state)(to_arrays(v) for v in state) if isinstance(state, list | tuple) else state


def to_tensors(state: Any) -> Any:
    """numpy to tensors of their own memory."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, dict):
        return {k: to_tensors(v) for k, v in state.items()}
    return [to_tensors(v) for v in state] if isinstance(state, list) else state
