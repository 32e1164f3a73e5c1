"""RCL's memory: a queue whose entries know their samples, and clusters over all samples.

A step is not sent label tables. For each position of its batch it is told which queue entry to take as each key,
and under which criteria key and query have the same label. Labels are looked up when a step asks, because they
change under old features.

Letters: B global batch, V views, J keys, H criteria (criterion 0 is the sample itself), K queue, N samples.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raysurl import streams
from raysurl.memory import Queue
from raysurl.memory.base import Memory
from raysurl.method import Answer, Progress, Snapshot

OWN = -1  # in place of a queue slot: the key is the sample's own other view


class Clusters(Protocol):
    """What gives every sample a label under each criterion, coarser from one to the next."""

    num_samples: int

    def fit(self, features: Any) -> Any: ...

    def update(self, index: Any, features: Any, *, step: int | None = None) -> Any: ...

    def labels(self, index: Any) -> NDArray[np.int64]:
        """Sample indices (B,) -> labels (1 + levels, B); row 0 is the sample itself."""

    def health(self, truth: NDArray[np.int64] | None = None) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ClusterMemory(Memory):
    """Queue and clusters of one run. Until the first `refresh` there are no clusters and every key is the own one.

    `make` builds the clusters when they are first needed, so that a worker, which only mirrors the queue, never
    holds them. `pick` chooses the keys, see `per_level`. `instance_level`: the sample itself is the first criterion.
    """

    answers: ClassVar[bool] = True
    staleness: ClassVar[int] = 1  # the clustering is hidden behind the step
    has_clusters: ClassVar[bool] = True

    def __init__(
        self,
        queue: Queue,
        make: Callable[[], Clusters],
        pick: Pick,
        *,
        views: int,
        seed: int,
        instance_level: bool = True,
    ) -> None:
        self.queue, self.make, self.pick = queue, make, pick
        self.views, self.seed, self.instance_level = views, seed, instance_level
        self.partition: Clusters | None = None
        self.updates = 0
        self._compiling: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Have the clusters' code compiled by a process of its own, while there are none yet."""
        self._compiling = subprocess.Popen([sys.executable, "-m", "raysurl.hierarchy.compiling"])

    def push(self, keys: Tensor, index: Tensor) -> None:
        """Keys (V·B, D): all go to the queue; a sample's feature in the clusters is the mean of its views'."""
        self.queue.push(keys, index)
        self.updates += 1
        if self.partition is not None:
            features = F.normalize(keys.view(self.views, -1, keys.shape[1]).mean(dim=0), dim=1)
            self.partition.update(index[: len(features)].numpy(), features.numpy(), step=self.updates)

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        assert features is not None
        if self._compiling:
            self._compiling.wait()
        self.partition = self.make()
        self.partition.fit(F.normalize(features, dim=1).numpy())

    def answer(self, index: Tensor, step: int) -> Answer:
        """`slots` (B, V, J) int64 queue slots, −1 = the own key; `same` (B, V, J, H) bool label comparisons."""
        if self.partition is None:
            own = torch.full((len(index), self.views, 1), OWN)
            return {"slots": own, "same": torch.ones(*own.shape, 1, dtype=torch.bool)}
        filled = np.flatnonzero(self.queue.index.numpy() >= 0)
        of_queue = np.asarray(self.partition.labels(self.queue.index.numpy()[filled]))  # (H, filled)
        of_batch = np.asarray(self.partition.labels(index.numpy()))  # (H, B)
        slots, same = [], []
        for view in range(self.views):
            random = streams.numpy_stream(self.seed, "rcl keys", step, view)
            chosen = self.pick(of_batch, of_queue, random)  # (B, J) positions among the filled, −1 = own
            theirs = (
                of_queue[:, chosen] if len(filled) else np.zeros((len(of_batch), *chosen.shape), np.int64)
            )
            equal = (theirs == of_batch[:, :, None]) | (chosen == OWN)  # (H, B, J)
            slots.append(np.where(chosen == OWN, OWN, filled[chosen] if len(filled) else OWN))
            criteria = equal if self.instance_level else equal[1:]
            same.append(criteria.transpose(1, 2, 0))
        return {
            "slots": torch.from_numpy(np.stack(slots, axis=1)),
            "same": torch.from_numpy(np.stack(same, axis=1)),
        }

    def snapshot(self) -> Snapshot:
        return self.queue.snapshot()

    def mirror(self, device: torch.device) -> Memory:
        return self.queue.mirror(device)

    def cluster_labels(self) -> NDArray[np.int64] | None:
        if self.partition is None:
            return None
        return self.partition.labels(np.arange(self.partition.num_samples))[1:]

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]:
        return {} if self.partition is None else self.partition.health(labels)

    def state_dict(self) -> dict[str, Any]:
        clusters = None if self.partition is None else self.partition.state_dict()
        return {"queue": self.queue.state_dict(), "updates": self.updates, "clusters": clusters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.queue.load_state_dict(state["queue"])
        self.updates = int(state["updates"])
        self.partition = None
        if state["clusters"] is not None:
            self.partition = self.make()
            self.partition.load_state_dict(state["clusters"])


Pick = Callable[[NDArray[np.int64], NDArray[np.int64], np.random.Generator], NDArray[np.int64]]
"""(labels of the batch (H, B), labels of the filled queue entries (H, Q), random) -> (B, J) entries or OWN."""


def per_level(
    batch: NDArray[np.int64], queue: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.int64]:
    """One key per criterion: the own one, then for each coarser criterion an entry with the sample's label."""
    columns = [np.full(batch.shape[1], OWN)]
    columns += [_entry_with_label(batch[h], queue[h], random) for h in range(1, len(batch))]
    return np.stack(columns, axis=1)


def one_level(
    batch: NDArray[np.int64], queue: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.int64]:
    """A single key, of a criterion drawn for each sample."""
    keys = per_level(batch, queue, random)
    level = random.integers(0, keys.shape[1], len(keys))
    return keys[np.arange(len(keys)), level][:, None]


def own(batch: NDArray[np.int64], queue: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """The own other view."""
    return np.full((batch.shape[1], 1), OWN)


def _entry_with_label(
    wanted: NDArray[np.int64], labels: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.int64]:
    """(B,) a uniformly random entry of `labels` (Q,) that equals each of `wanted` (B,); OWN where there is none."""
    draws = random.random(
        len(wanted)
    )  # drawn for all, so that the number of entries does not shift the stream
    order = np.argsort(labels, kind="stable")
    begin = np.searchsorted(labels[order], wanted, side="left")
    count = np.searchsorted(labels[order], wanted, side="right") - begin
    at = begin + (draws * count).astype(np.int64)
    return (
        np.where(count > 0, order[np.minimum(at, len(order) - 1)], OWN)
        if len(order)
        else np.full(len(wanted), OWN)
    )
