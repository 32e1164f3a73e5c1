"""Batches made by data tasks: each rank's own Ray Data pipeline makes just its rows, in exact order.

`streaming_split` is not used: it deals blocks to whoever is behind, so its order depends on the number of
workers. Here the order is the plan's, the pipeline is told which rows to make, and a batch that comes out is
checked against the request it answers.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import ray
from ray import cloudpickle
from ray.exceptions import RayError

from raysurl.data.gather import Gather, Images
from raysurl.data.prefetch import prefetch
from raysurl.data.shards import Shard
from raysurl.data.source import ResidentSource, Source, SourceFacts, rows_together, units
from raysurl.errors import InputError, RunError
from raysurl.sampler import Request
from raysurl.scale import pipeline, tasks
from raysurl.scale.blocks import shards_of

T = TypeVar("T")
Transform = Callable[[Request, Images], T]

_ROWS = 256  # samples read together where reading together saves nothing
_COVERED = 2**18  # samples, at least, that one pipeline covers, for starting one costs a fraction of a second


class RayStreamingSource(Source):
    """Batches of one rank, read and decoded on the cluster's CPUs with bounded memory.

    `samples`: reference to the Samples, owned by the driver. `pipelines`: how many ranks share the cluster.
    With `views_on_workers` the transform runs in the tasks too, so it and what it returns must pickle.
    """

    def __init__(
        self, samples: Any, facts: SourceFacts, *, pipelines: int, views_on_workers: bool = False
    ) -> None:
        super().__init__(facts)
        self.samples = samples
        self.pipelines, self.views_on_workers = pipelines, views_on_workers

    def batches(self, requests: Iterable[Request], transform: Transform[T]) -> Iterator[T]:
        if not self.views_on_workers:
            return super().batches(requests, transform)
        return prefetch(_unpickled(self._tables(requests, cloudpickle.dumps(transform))))

    def images(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Images]]:
        for request, table in self._tables(requests, None):
            yield request, Gather(list(shards_of(table)))(np.arange(len(request.index)))

    def _tables(self, requests: Iterable[Request], transform: bytes | None) -> Iterator[tuple[Request, Any]]:
        rows = max(_ROWS, rows_together(ray.get(self.samples)))
        stages = [partial(tasks.read, self.samples), partial(tasks.decode, self.samples, transform)]
        for inputs in covered(units(requests, rows), max(len(self), _COVERED)):
            joined = [request for unit in inputs for request in unit]
            # a task holds a rank's part of a window; the next one is read while the views of this one are made
            one = 1 if self.windows else None
            yield from answers(joined, inputs, stages, self.pipelines, readers=one)


class RayViewsSource(ResidentSource):
    """Resident shards whose views are made by tasks on the cluster's CPUs; `tables`: references to them."""

    def __init__(
        self, tables: Sequence[Any], shards: Sequence[Shard], facts: SourceFacts, *, pipelines: int
    ) -> None:
        super().__init__(shards, facts)
        self.tables, self.pipelines = list(tables), pipelines

    def batches(self, requests: Iterable[Request], transform: Transform[T]) -> Iterator[T]:
        return prefetch(_unpickled(self._tables(requests, cloudpickle.dumps(transform))))

    def _tables(self, requests: Iterable[Request], transform: bytes) -> Iterator[tuple[Request, Any]]:
        stages = [partial(tasks.gather, self.tables, transform)]
        for inputs in covered(([request] for request in requests), max(len(self), _COVERED // 16)):
            joined = [request for unit in inputs for request in unit]
            yield from answers(joined, joined, stages, self.pipelines)


def covered(parts: Iterable[list[Request]], rows: int) -> Iterator[list[list[Request]]]:
    """Whole units of requests, joined until they hold at least `rows` samples: what one pipeline makes."""
    joined: list[list[Request]] = []
    held = 0
    for unit in parts:
        joined.append(unit)
        held += sum(len(request.index) for request in unit)
        if held >= rows:
            yield joined
            joined, held = [], 0
    if joined:
        yield joined


def answers(
    requests: Sequence[Request],
    inputs: Sequence[Any],
    stages: Sequence[Any],
    pipelines: int,
    *,
    readers: int | None = None,
) -> Iterator[tuple[Request, Any]]:
    """Each request with the row that the pipeline made for it.

    Raises RunError where a task failed, or where rows and requests do not match.
    """
    expected = iter(requests)
    try:
        for reference in pipeline.run(inputs, stages, pipeline.budget(pipelines), readers=readers):
            table = ray.get(reference)
            for row in range(len(table)):
                made = table.slice(row, 1)
                request, got = next(expected), tasks.unit_of(made)
                if (got.step, got.start) != (request.step, request.start):
                    raise RunError(f"the data pipeline lost its order at step {request.step}")
                yield request, made
    except RayError as error:
        raise failure(error) from error
    if next(expected, None) is not None:
        raise RunError("the data pipeline ended before its last batch")


def failure(error: BaseException) -> Exception:
    """What a task raised, if it is a sentence for a person; else a RunError that says which error."""
    cause: Any = getattr(error, "cause", None) or error  # Ray's error repeats the traceback in its text
    text = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    if isinstance(cause, InputError | RunError):
        return (InputError if isinstance(cause, InputError) else RunError)(text)
    return RunError(f"a data task failed with {type(cause).__name__}: {text}")


def _unpickled(tables: Iterator[tuple[Request, Any]]) -> Iterator[Any]:
    for _, table in tables:
        yield pickle.loads(table.column("result")[0].as_buffer())
