"""The memory actor: the plain memory class, wrapped once, and rank 0's handle on it.

The driver creates the actor, so it outlives a restart of the worker group and dies with the driver. Only rank 0
calls it. Every message carries a generation (one per start of the training function) and a version (the number of
updates applied), so that nothing is applied twice, skipped, or accepted from a worker that has been replaced:

  restore(generation, version, state)   the training function's first call; whatever the actor held is gone
  push(generation, version, …, ask)     applied if version = held + 1, answered again if = held, else refused
  answer, refresh, health, state                refused unless everything up to the given version has been applied

An actor that has restarted holds nothing and refuses everything until `restore`; rank 0's handle restores it and
replays what it had sent since.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor

from raysurl.method import Answer, Memory, Progress

Array = NDArray[Any]
Ask = tuple[Array, int]  # sample indices (B,) of a global batch, and its step
Update = tuple[int, Array, Array, Ask | None]  # version, keys, indices, and what is asked after it
REPLAY_BYTES = 256 * 2**20  # of keys kept for a replay; beyond, the actor's state is taken anew
LIVES = 3  # times in a row that an actor may die before the worker group starts again
logger = logging.getLogger(__name__)


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


class _ActorDiedError(RuntimeError):
    """The actor is in a new life, or will be."""


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

    It keeps what a new life of the actor needs: a state, in the object store, and the updates sent since. If the
    actor's process dies, the next call waits for its restart, restores that state, replays the updates and is then
    answered as if nothing had happened. Where that fails (the node is gone, the actor does not come back in time)
    or a call is refused, MemoryLostError sends the worker group back to its checkpoint.
    """

    def __init__(self, actor: ActorHandle, *, timeout_s: float) -> None:
        self._actor, self._timeout_s = actor, timeout_s
        self._generation = self._first_call()
        self._version = 0
        self._in_flight: Any = None
        self._refreshing: tuple[Any, ...] = ()
        self._base: tuple[int, Any] | None = None  # a version, and a reference to its state
        self._since: list[Update] = []

    def restore(self, version: int, state: dict[str, Any] | None) -> None:
        self._version = version
        self._base, self._since = (version, ray.put(_arrays(state))), []
        self._call("restore", *self._base)

    def push(self, version: int, keys: Tensor, index: Tensor, ask: tuple[Tensor, int] | None = None) -> None:
        self.collect()
        if sum(sent.nbytes for _, sent, _, _ in self._since) > REPLAY_BYTES:
            self._move_base()
        self._version = version
        update: Update = (version, keys.cpu().numpy(), index.cpu().numpy(), _arrays(ask))
        self._since.append(update)
        self._in_flight = self._actor.push.remote(self._generation, *update)

    def collect(self) -> Answer:
        """Wait for the call in flight, if there is one."""
        if self._in_flight is None:
            return {}
        reference, self._in_flight = self._in_flight, None
        try:
            answer: Answer = _tensors(self._get(reference))
        except _ActorDiedError:
            answer = _tensors(self._rebuild())
        return answer

    def answer(self, index: Tensor, step: int) -> Answer:
        self.collect()
        answer: Answer = _tensors(self._call("answer", self._version, (index.cpu().numpy(), step)))
        return answer

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        self.collect()
        rows = None if features is None else ray.put(features.numpy())
        self._begin_refresh(rows, progress)

    def refreshed(self) -> bool:
        reference, *arguments = self._refreshing
        done, _ = ray.wait([reference], timeout=0)
        if not done:
            return False
        try:
            self._get(reference)
        except _ActorDiedError:
            self._rebuild()
            self._begin_refresh(*arguments)
            return False
        self._refreshing = ()
        self._move_base()
        return True

    def health(self, labels: Array | None) -> dict[str, float]:
        self.collect()
        values: dict[str, float] = self._call("health", self._version, labels)
        self._move_base()  # signals count from one look to the next, and a look is not replayed
        return values

    def state(self, version: int) -> dict[str, Any]:
        self.collect()
        state: dict[str, Any] = _tensors(self._move_base(version))
        return state

    def _begin_refresh(self, rows: Any, progress: Progress) -> None:
        sent = self._actor.refresh.remote(self._generation, self._version, rows, progress)
        self._refreshing = (sent, rows, progress)

    def _move_base(self, version: int | None = None) -> Any:
        """Replay onto the state as it is now from here on; returns that state."""
        version = self._version if version is None else version
        reference, state = self._answered("state", version)
        self._base, self._since = (version, reference), []
        return state

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._answered(method, *arguments)[1]

    def _answered(self, method: str, *arguments: Any) -> tuple[Any, Any]:
        """A call's reference and answer; asked again of the actor's next life if it dies."""
        for _ in range(LIVES):
            reference = getattr(self._actor, method).remote(self._generation, *arguments)
            try:
                return reference, self._get(reference)
            except _ActorDiedError:
                self._rebuild()
        raise MemoryLostError(f"the memory actor died {LIVES} times in one call")

    def _rebuild(self) -> Any:
        """Bring a restarted actor to where it was; the answer of the last update."""
        if self._base is None:
            raise MemoryLostError("the memory actor holds nothing until `restore`")
        for _ in range(LIVES):
            self._generation = self._first_call()
            try:
                self._get(self._actor.restore.remote(self._generation, *self._base))
                answer: Any = {}
                for version, keys, index, ask in self._since:
                    asked = ask if version == self._version else None
                    answer = self._actor.push.remote(self._generation, version, keys, index, asked)
                replayed = self._get(answer) if self._since else {}
            except _ActorDiedError:
                continue
            logger.warning("the memory actor was restarted and %d updates replayed", len(self._since))
            return replayed
        raise MemoryLostError(f"the memory actor died {LIVES} times while its updates were replayed")

    def _first_call(self) -> int:
        """A new generation; an actor that is just being restarted is waited for."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                generation: int = ray.get(self._actor.new_generation.remote(), timeout=self._timeout_s)
                return generation
            except (RayActorError, GetTimeoutError) as error:
                if time.monotonic() > deadline:
                    raise MemoryLostError(
                        f"the memory actor did not come back ({_first_line(error)})"
                    ) from error
                time.sleep(0.2)

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=self._timeout_s)
        except GetTimeoutError:
            text = f"the memory actor did not answer within scale.timeout_s={self._timeout_s:g} s"
            raise MemoryLostError(text) from None
        except (RayActorError, RestartedError) as error:
            raise _ActorDiedError(_first_line(error)) from error
        except RayTaskError as error:
            raise MemoryLostError(f"the memory actor refused a call ({_first_line(error)})") from error


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
