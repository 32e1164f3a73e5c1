"""One rank's access to memory: a mirror on its device, and the record behind it.

Tensors that every step needs (a queue's features) are mirrored on each rank and kept equal by equal pushes. What
a step needs besides, and only the record can tell (which queue entries share a cluster with a sample), is asked
for ahead, for the indices that the plan names; rank 0 asks and the other ranks are given its answer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl import distributed, streams
from raysurl.memory.base import Memory
from raysurl.memory.record import LocalRecord, MemoryRecord
from raysurl.method import Answer, Output, Progress, Snapshot
from raysurl.recipe import Recipe
from raysurl.sampler import Plan
from raysurl.views.colour import to_device

POLL_S = 0.5
T = TypeVar("T")
Indices = Callable[[int], Tensor]  # step -> sample indices (B,) of its global batch


class MemoryLink:
    """A mirror kept equal on all ranks, updates sent to the record, and its answers for the coming steps.

    `version` counts updates. With staleness s, step t reads memory as it was after update t − 1 − s: the mirror
    lags by s updates, and the answer for step t was computed after that update. Call t, sent when step t is
    done, carries update t and asks for step t + 1 + s; at most one call is in flight. `record` is given on rank 0
    only, or nowhere where the mirror is all there is. Every rank makes the same calls in the same order.
    """

    def __init__(
        self,
        memory: Memory,
        mirror: Memory,
        *,
        record: MemoryRecord | None,
        staleness: int,
        plan: Indices,
        device: torch.device | None = None,
    ) -> None:
        """`device`: where answers are handed out; None: on the CPU."""
        self.device = device or torch.device("cpu")
        self.asks, self.has_clusters = memory.answers, memory.has_clusters
        self.mirror, self.record = mirror, record
        self.staleness, self.plan = staleness, plan
        self.version = 0
        self.keys_of_a_step = 0  # as the latest step pushed them
        self._pending: deque[tuple[Tensor, Tensor]] = deque()  # updates that the mirror has yet to see
        self._answers: deque[Answer] = deque()  # for step `version` and the ones after it
        self._in_flight = False

    def begin(self) -> None:
        """A fresh run: the record begins, and answers the first steps."""
        if self.record:
            self.record.restore(0, None)
        self._ask_ahead()

    def refresh(self, features: Tensor | None, readable: Tensor, progress: Progress) -> None:
        """Rebuild: features (n, D) of the `readable` (N,) samples, in index order, on rank 0; None where unused.

        What cannot be read has a random row, near nothing, and is never asked for. The coming steps are asked again.
        """
        self.drain()
        if self.record:
            rows = None if features is None else _row_per_sample(features, readable)
            self.record.refresh(rows, progress)
        while not self._shared(lambda record: record.refreshed()):
            time.sleep(POLL_S)  # no collective waits for the clustering itself, which may take minutes
        self._ask_ahead()

    def neighbour_graph(self) -> NDArray[np.int64] | None:
        """The graph (N, k) that the record holds, on every rank."""
        self.drain()
        return self._shared(lambda record: record.neighbour_graph())

    def cluster_labels(self) -> NDArray[np.int64] | None:
        """The labels (levels, N) that the record holds, on rank 0."""
        self.drain()
        return self.record.cluster_labels() if self.record else None

    def follow(self, plan: Indices) -> None:
        """From now on the batches are those of `plan`, and the coming steps are asked again."""
        self.drain()
        self.plan = plan
        self._ask_ahead()

    def snapshot(self, rows: slice) -> Snapshot:
        """What step `version` reads: mirrored tensors, and the answer for the global batch's positions `rows`."""
        if not self.asks:
            return self.mirror.snapshot()
        if not self._answers:
            self.drain()  # staleness 0 waits here for the call of the step before
        answer = {name: to_device(value[rows], self.device) for name, value in self._answers[0].items()}
        return {**self.mirror.snapshot(), **answer}

    def push(self, keys: Tensor, index: Tensor) -> None:
        """The update of this step: keys (V·B, D) and indices (V·B,) of the global batch, by (view, position)."""
        ask = None
        self.version += 1
        self.keys_of_a_step = len(keys)
        if self.asks:
            self._answers.popleft()
            self.drain()
            coming = self.version + self.staleness
            ask = (self.plan(coming), coming)
            self._in_flight = True
        if self.record:
            self.record.push(self.version, keys, index, ask)
        self._pending.append((keys, index))
        while len(self._pending) > self.staleness:
            self.mirror.push(*self._pending.popleft())

    def drain(self) -> None:
        """Wait for the call in flight; every rank gets its answer."""
        if self._in_flight:
            self._answers.append(self._shared(lambda record: record.collect()))
            self._in_flight = False

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]:
        """What the record says of memory now, judged by labels (N,) where there are any; empty where there is none."""
        self.drain()
        return self.record.health(labels) if self.record else {}

    def state_dict(self) -> dict[str, Any]:
        """Everything, after `drain`: the record's own state where there is one, else the mirror is the record."""
        state: dict[str, Any] = {"version": self.version, "answers": list(self._answers)}
        state["keys"] = self.keys_of_a_step
        state["record"] = self.record.state(self.version) if self.record else self.mirror.state_dict()
        if self.record or self._pending:
            state["mirror"] = self.mirror.state_dict()
            state["pending"] = [(keys.cpu(), index.cpu()) for keys, index in self._pending]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.version, self.keys_of_a_step = int(state["version"]), int(state.get("keys", 0))
        self.mirror.load_state_dict(state.get("mirror", state["record"]))
        self._pending, self._answers = deque(state.get("pending", [])), deque(state["answers"])
        if self.record:
            self.record.restore(self.version, state["record"])

    def _ask_ahead(self) -> None:
        """Answers for the steps whose memory is the one the record holds now."""
        if self.asks:
            coming = range(self.version, self.version + 1 + self.staleness)
            questions = [(self.plan(step), step) for step in coming]
            self._answers = deque(self._shared(lambda record: [record.answer(*q) for q in questions]))

    def _shared(self, ask: Callable[[MemoryRecord], T]) -> T:
        """What rank 0's record says, on every rank."""
        answer: T = distributed.broadcast_object(ask(self.record) if self.record else None)
        return answer


def link(
    recipe: Recipe, the_plan: Plan, num_samples: int, *, device: torch.device, record: MemoryRecord | None
) -> MemoryLink | None:
    """This rank's link to the memory of the recipe's method, mirrored on `device`; None where it remembers nothing.

    `record`: the memory actor, on rank 0 under Ray. Without one rank 0 keeps the memory itself.
    """
    if recipe.method.remembers() is None:
        return None
    memory = recipe.method.memory(num_samples, recipe.stream_seed)
    if record is None and memory.answers and distributed.rank() == 0:
        record = LocalRecord(memory)
        if device.type == "cuda":  # where the host has cores to spare
            memory.prepare()
    return MemoryLink(
        memory,
        memory.mirror(device),
        record=record,
        staleness=recipe.staleness,
        plan=indices_of(the_plan),
        device=device,
    )


def indices_of(the_plan: Plan) -> Indices:
    return lambda step: torch.from_numpy(the_plan.global_batch(step))


def _row_per_sample(features: Tensor, readable: Tensor) -> Tensor:
    """(n, D) of the readable samples -> (N, D)."""
    rows = torch.randn(len(readable), features.shape[1], generator=streams.torch_stream(0, "unread rows"))
    rows[readable] = features
    return rows


def gather_push(outputs: list[Output]) -> tuple[Tensor, Tensor]:
    """Keys (V·B, D) and indices (V·B,) of the whole global batch, ordered by (view, position)."""
    pushes = [o.push for o in outputs if o.push is not None]
    keys = torch.cat([distributed.gather(p.keys.transpose(0, 1)) for p in pushes])  # (B, V, D)
    index = torch.cat([distributed.gather(p.index) for p in pushes])
    return keys.transpose(0, 1).flatten(0, 1), index.repeat(keys.shape[1])
