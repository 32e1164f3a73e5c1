"""The memory actor: the plain memory class, wrapped once, and rank 0's handle on it.

The driver creates the actor, so it outlives a restart of the worker group and dies with the driver. Only rank 0
calls it. Every message carries a generation (one per start of the training function) and a version (the number of
updates applied), so that nothing is applied twice, skipped, or accepted from a worker that has been replaced:

  restore(generation, version, state)   the training function's first call; whatever the actor held is gone
  push(generation, version, …, ask)     applied if version = held + 1, answered again if = held, else refused
  answer, refresh, health, state                refused unless everything up to the given version has been applied

An actor that has restarted holds nothing and refuses everything until `restore`.
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
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor

from raysurl.method import Answer, Memory, Progress

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
            memory.load_state_dict(_tensors(state))
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
        return _arrays(self._held(generation, version).answer(torch.from_numpy(index.copy()), step))

    def refresh(self, generation: int, version: int, features: Array | None, progress: Progress) -> None:
        rows = None if features is None else torch.from_numpy(features)
        self._held(generation, version).refresh(rows, progress)

    def health(self, generation: int, version: int, labels: Array | None) -> dict[str, float]:
        return self._held(generation, version).health(labels)

    def state(self, generation: int, version: int) -> dict[str, Any]:
        return _arrays(self._held(generation, version).state_dict())

    def _held(self, generation: int, version: int | None = None) -> Memory:
        if self._memory is None:
            raise StaleCallError("the memory actor has restarted and holds nothing until `restore`")
        if generation != self._generation:
            raise StaleCallError(f"generation {generation} is not the current one, {self._generation}")
        if version not in (None, self._version):
            raise StaleCallError(f"the memory is at update {self._version}, not {version}")
        return self._memory


class StaleCallError(RuntimeError):
    """A call that the actor refuses."""


class MemoryLostError(RuntimeError):
    """The actor died, refused a call or did not answer: the worker group starts again from its checkpoint."""


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


class ActorRecord:
    """Rank 0's handle: sends updates without waiting for them, at most one in flight.

    If the actor dies, the updates since the last known state are gone with it; the call that notices raises
    MemoryLostError and the worker group starts again from its checkpoint, which restores the actor too.
    """

    def __init__(self, actor: ActorHandle, *, timeout_s: float) -> None:
        self._actor, self._timeout_s = actor, timeout_s
        self._generation = self._first_call()
        self._version = 0
        self._in_flight: Any = None
        self._refreshing: Any = None

    def restore(self, version: int, state: dict[str, Any] | None) -> None:
        self._version = version
        self._get(self._actor.restore.remote(self._generation, version, _arrays(state)))

    def push(self, version: int, keys: Tensor, index: Tensor, ask: tuple[Tensor, int] | None = None) -> None:
        self.collect()
        self._version = version
        sent = (keys.cpu().numpy(), index.cpu().numpy(), _arrays(ask))
        self._in_flight = self._actor.push.remote(self._generation, version, *sent)

    def collect(self) -> Answer:
        """Wait for the call in flight, if there is one."""
        if self._in_flight is None:
            return {}
        reference, self._in_flight = self._in_flight, None
        answer: Answer = _tensors(self._get(reference))
        return answer

    def answer(self, index: Tensor, step: int) -> Answer:
        self.collect()
        ask = (index.cpu().numpy(), step)
        answer: Answer = _tensors(self._get(self._actor.answer.remote(self._generation, self._version, ask)))
        return answer

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        self.collect()
        rows = None if features is None else features.numpy()
        self._refreshing = self._actor.refresh.remote(self._generation, self._version, rows, progress)

    def refreshed(self) -> bool:
        done, _ = ray.wait([self._refreshing], timeout=0)
        if done:
            self._get(self._refreshing)
        return bool(done)

    def health(self, labels: Array | None) -> dict[str, float]:
        self.collect()
        asked = self._actor.health.remote(self._generation, self._version, labels)
        values: dict[str, float] = self._get(asked)
        return values

    def state(self, version: int) -> dict[str, Any]:
        self.collect()
        state: dict[str, Any] = _tensors(self._get(self._actor.state.remote(self._generation, version)))
        return state

    def _first_call(self) -> int:
        """A new generation; an actor that is just being restarted is waited for."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                generation: int = ray.get(self._actor.new_generation.remote(), timeout=self._timeout_s)
                return generation
            except ActorUnavailableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=self._timeout_s)
        except GetTimeoutError:
            text = f"the memory actor did not answer within scale.timeout_s={self._timeout_s:g} s"
            raise MemoryLostError(text) from None
        except (RayActorError, RayTaskError) as error:
            raise MemoryLostError(
                f"the memory actor was lost or refused a call ({_first_line(error)})"
            ) from error


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _arrays(state: Any) -> Any:
    """Tensors to numpy, through dicts, lists and tuples."""
    if isinstance(state, Tensor):
        return state.cpu().numpy()
    if isinstance(state, dict):
        return {k: _arrays(v) for k, v in state.items()}
    return type(state)(_arrays(v) for v in state) if isinstance(state, list | tuple) else state


def _tensors(state: Any) -> Any:
    """numpy to tensors of their own memory."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, dict):
        return {k: _tensors(v) for k, v in state.items()}
    return [_tensors(v) for v in state] if isinstance(state, list) else state
