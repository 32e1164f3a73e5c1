"""Plans: in which order an epoch visits the samples, a pure function of (seed, epoch).

An order is cut into consecutive global batches of B; every rank takes its part of each by position. Nothing
here depends on the world size except which positions a rank is handed, so any number of ranks sees the same
global batches. Orders are sorted raw bits of a counter-based stream, which NumPy guarantees, so that none changes with
the NumPy version.

Letters: N samples, n readable ones, B global batch, A micro-batches per step, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raysurl import streams
from raysurl.errors import InputError

Index = NDArray[np.int64]

_WINDOWS, _SAMPLES, _GROUPS = 0, 1, 2  # purposes of random numbers within an epoch


@dataclass(frozen=True, eq=False)
class Request:
    """One rank's part of a global batch.

    `index` (b,) int64 sample indices; they stand at positions start … start+b-1 of the global batch of
    optimizer step `step`.
    """

    step: int
    start: int
    index: Index

    @property
    def rows(self) -> slice:
        """The positions in the global batch."""
        return slice(self.start, self.start + len(self.index))


@dataclass(frozen=True, eq=False)
class Plan:
    """The whole run's order. Build it with `plan`.

    `readable` (n,) int64: the sample indices in use. `window`: see `epoch_order`. `graph` (N, k) int64, -1 =
    none: neighbours of each sample, best first, for the `neighbours` sampler.
    """

    readable: Index
    batch_size: int
    seed: int
    window: int | None = None
    graph: Index | None = None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.readable) // self.batch_size

    @property
    def left_out(self) -> int:
        """Samples that an epoch leaves out, n mod B; other ones each epoch."""
        return len(self.readable) % self.batch_size

    def order(self, epoch: int) -> Index:
        """(n,) sample indices in the order of `epoch`, the tail that is left out included."""
        order = epoch_order(self.readable, self.seed, epoch, self.window)
        if self.graph is None:
            return order
        keys = None if self.window else _bits(len(order), self.seed, epoch, _GROUPS)
        return beside_neighbours(order, self.graph, keys)

    def global_batches(self, first: int, last: int) -> Iterator[tuple[int, Index]]:
        """(step, (B,) sample indices) of the optimizer steps first … last-1, counted from the run's start."""
        for step in range(first, last):
            yield step, self.global_batch(step)

    def global_batch(self, step: int) -> Index:
        """(B,) sample indices of one optimizer step."""
        begin = (step % self.steps_per_epoch) * self.batch_size
        return _kept_order(self, step // self.steps_per_epoch)[begin : begin + self.batch_size]

    def requests(
        self, first: int, last: int, *, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ) -> Iterator[Request]:
        """What `rank` reads for the steps first … last-1: A requests per step, micro-batch by micro-batch.

        Micro-batch m of rank r holds the positions m·B/A + r·B/(A·W) … of the global batch, so the ranks'
        parts of one micro-batch, joined in rank order, are consecutive positions.
        """
        part, rest = divmod(self.batch_size, accumulate * world_size)
        if rest:
            raise InputError(
                f"train.batch_size={self.batch_size} must be a multiple of workers × train.accumulate ="
                f" {world_size} × {accumulate}"
            )
        for step, batch in self.global_batches(first, last):
            for micro in range(accumulate):
                start = (micro * world_size + rank) * part
                yield Request(step, start, batch[start : start + part])


@lru_cache(maxsize=2)
def _kept_order(the_plan: Plan, epoch: int) -> Index:
    return the_plan.order(epoch)


def plan(
    readable: NDArray[np.bool_] | Index | int,
    *,
    batch_size: int,
    seed: int,
    window: int | None = None,
    graph: Index | None = None,
) -> Plan:
    """The plan over the readable samples (a mask (N,), their indices, or just their number).

    Raises InputError for fewer readable samples than one batch.
    """
    index = _indices(readable)
    if len(index) < batch_size:
        raise InputError(
            f"train.batch_size={batch_size} is more than the {len(index)} readable samples; use at most these"
        )
    return Plan(index, batch_size, seed, window, graph)


def epoch_order(
    readable: NDArray[np.bool_] | Index | int, seed: int, epoch: int, window: int | None = None
) -> Index:
    """(n,) sample indices in the order of one epoch: an exact permutation of the readable ones.

    With `window`, the readable samples are cut into windows of that many neighbours in the listing; the
    windows come in seeded order and each is permuted exactly within itself.
    """
    index = _indices(readable)
    n = len(index)
    keys = _bits(n, seed, epoch, _SAMPLES)
    if window is None or window >= n:
        return index[np.argsort(keys, kind="stable")]
    num_windows = -(-n // window)
    place = np.empty(num_windows, np.int64)  # window -> its place in the epoch
    place[np.argsort(_bits(num_windows, seed, epoch, _WINDOWS), kind="stable")] = np.arange(num_windows)
    return index[np.lexsort((keys, place[np.arange(n) // window]))]


def beside_neighbours(order: Index, graph: Index, keys: NDArray[np.uint64] | None = None) -> Index:
    """Reorder so that each sample is followed by those of its neighbours that are still to come.

    `order` (n,), `graph` (N, k) with -1 for none. The result is a permutation of `order`; consecutive slices
    of it are batches that contain positives of the graph. The later a sample, the fewer of its neighbours are left:
    random `keys` (n,) mix these groups of a sample and its neighbours, so that all batches hold as many positives.
    """
    pending = bytearray(len(graph))
    for sample in order.tolist():
        pending[sample] = 1
    result: list[int] = []
    begins: list[int] = []
    for anchor in order.tolist():
        if not pending[anchor]:
            continue
        pending[anchor] = 0
        begins.append(len(result))
        result.append(anchor)
        for neighbour in graph[anchor].tolist():  # a row at a time: the whole graph as a list takes gigabytes
            if neighbour >= 0 and pending[neighbour]:
                pending[neighbour] = 0
                result.append(neighbour)
    found = np.array(result, np.int64)
    if keys is None:
        return found
    sizes = np.diff([*begins, len(found)])
    place = np.argsort(keys[: len(sizes)], kind="stable")
    within = np.arange(len(found)) - np.repeat(np.cumsum(sizes[place]) - sizes[place], sizes[place])
    mixed: Index = found[np.repeat(np.array(begins, np.int64)[place], sizes[place]) + within]
    return mixed


def _bits(count: int, seed: int, epoch: int, purpose: int) -> NDArray[np.uint64]:
    """(count,) raw random bits of the stream (seed, epoch, purpose)."""
    return streams.raw_bits(count, seed, "order", epoch, purpose)


def _indices(readable: NDArray[np.bool_] | Index | int) -> Index:
    if isinstance(readable, int):
        return np.arange(readable, dtype=np.int64)
    return np.flatnonzero(readable) if readable.dtype == bool else np.asarray(readable, np.int64)
