"""Rank 0's handle on the memory actor: it brings a restarted actor to where it was, and says when it cannot."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor

from raysurl.memory.record import MemoryLostError
from raysurl.method import Answer, Progress
from raysurl.scale.memory import Array, Ask, RestartedError, StaleCallError, to_arrays, to_tensors

Update = tuple[int, Array, Array, Ask | None]  # version, keys, indices, and what is asked after it
Look = int  # the version at which memory's health was looked at: signals count from one look to the next
REPLAY_BYTES = 256 * 2**20  # of keys kept for a replay; beyond, the actor's state is taken anew
LIVES = 3  # times in a row that an actor may die before the worker group starts again
logger = logging.getLogger(__name__)


class _ActorDiedError(RuntimeError):
    """The actor is in a new life, or will be."""


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
        self._since: list[Update | Look] = []

    def restore(self, version: int, state: dict[str, Any] | None) -> None:
        self._version = version
        self._base, self._since = (version, ray.put(to_arrays(state))), []
        try:
            self._call("restore", *self._base)
        except MemoryLostError as error:
            cause = error.__cause__
            if state is None or not isinstance(cause, RayTaskError) or isinstance(cause, StaleCallError):
                raise
            raise ValueError(f"memory refuses its state: {_first_line(cause)}") from None

    def push(self, version: int, keys: Tensor, index: Tensor, ask: tuple[Tensor, int] | None = None) -> None:
        self.collect()
        if sum(sent[1].nbytes for sent in self._since if not isinstance(sent, Look)) > REPLAY_BYTES:
            self._move_base()
        self._version = version
        update: Update = (version, keys.cpu().numpy(), index.cpu().numpy(), to_arrays(ask))
        self._since.append(update)
        self._in_flight = self._actor.push.remote(self._generation, *update)

    def collect(self) -> Answer:
        """Wait for the call in flight, if there is one."""
        if self._in_flight is None:
            return {}
        reference, self._in_flight = self._in_flight, None
        try:
            answer: Answer = to_tensors(self._get(reference))
        except _ActorDiedError:
            answer = to_tensors(self._rebuild())
        return answer

    def answer(self, index: Tensor, step: int) -> Answer:
        self.collect()
        answer: Answer = to_tensors(self._call("answer", self._version, (index.cpu().numpy(), step)))
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

    def neighbour_graph(self) -> Array | None:
        self.collect()
        found: Array | None = self._call("neighbour_graph", self._version)
        return found

    def cluster_labels(self) -> Array | None:
        self.collect()
        found: Array | None = self._call("cluster_labels", self._version)
        return found

    def health(self, labels: Array | None) -> dict[str, float]:
        self.collect()
        values: dict[str, float] = self._call("health", self._version, labels)
        self._since.append(self._version)
        return values

    def state(self, version: int) -> dict[str, Any]:
        self.collect()
        state: dict[str, Any] = to_tensors(self._move_base(version))
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
                answer: Any = None
                for sent in self._since:
                    if isinstance(sent, Look):
                        self._actor.health.remote(self._generation, sent, None)
                        continue
                    version, keys, index, ask = sent
                    asked = ask if version == self._version else None
                    answer = self._actor.push.remote(self._generation, version, keys, index, asked)
                replayed = {} if answer is None else self._get(answer)
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
