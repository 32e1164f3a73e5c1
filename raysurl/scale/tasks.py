"""What the data tasks of a cluster do: plain functions from one row of a table to tables.

They import no torch (unless a transform brings it), so that a task starts at once and a process stays small.
`samples` is a reference to the Samples, which the driver owns.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray import cloudpickle

from raysurl.data.dataset import Samples, Unreadable, all_readable
from raysurl.data.decode import Array
from raysurl.data.shards import pack, pack_all
from raysurl.scale.blocks import shards_of, skipped_of, to_table

Tables = Iterator[Any]


def unit_of(table: Any) -> Any:
    """What the stage was asked for: the unpickled column `unit`."""
    return pickle.loads(table.column("unit")[0].as_buffer())


def with_unit(table: Any, unit: Any) -> Any:
    """A table of one row, saying which unit it answers."""
    return table.append_column("unit", pa.array([pickle.dumps(unit)], pa.large_binary()))


def shards(samples: Any, table: Any) -> Tables:
    """A unit (begin, end) → its samples decoded, as shards."""
    source: Samples = ray.get(samples)
    begin, end = unit_of(table)
    skipped: list[Unreadable] = []

    def loaded() -> Iterator[Array | Unreadable]:
        for sample in source.load(np.arange(begin, end)):
            if isinstance(sample, Unreadable):
                skipped.append(sample)
            yield sample

    for shard in pack_all(loaded()):
        yield to_table(shard, skipped)
        skipped.clear()


def look(table: Any) -> tuple[int, list[Unreadable]]:
    """Rows and unreadable samples of a table of shards, found where it lies, so that its pixels need not travel."""
    return sum(map(len, shards_of(table))), skipped_of(table)


def verify(samples: Any, table: Any) -> Tables:
    """A unit (begin, end) → those of its samples that cannot be read, as JSON."""
    source: Samples = ray.get(samples)
    begin, end = unit_of(table)
    skipped = [asdict(sample) for sample in source.unreadable(np.arange(begin, end))]
    yield pa.table({"end": [end], "skipped": [json.dumps(skipped)]})


def read(samples: Any, table: Any) -> Tables:
    """A unit of requests → each request with its encoded samples."""
    source: Samples = ray.get(samples)
    unit = unit_of(table)
    encoded = source.read(np.concatenate([request.index for request in unit]))
    start = 0
    for request in unit:
        part = encoded[start : start + len(request.index)]
        start += len(part)
        yield with_unit(pa.table({"encoded": pa.array([pickle.dumps(part)], pa.large_binary())}), request)


def decode(samples: Any, transform: bytes | None, table: Any) -> Tables:
    """A request with its encoded samples → its images, as a shard, or what the pickled transform makes of them."""
    source: Samples = ray.get(samples)
    request = unit_of(table)
    loaded = source.decode(request.index, pickle.loads(table.column("encoded")[0].as_buffer()))
    arrays = all_readable(loaded)
    if transform is None:
        yield with_unit(to_table(pack(arrays)), request)
        return
    from raysurl.data.gather import stack

    yield _result(cloudpickle.loads(transform)(request, stack(arrays)), request)


def gather(tables: list[Any], transform: bytes, table: Any) -> Tables:
    """A request → what the transform makes of its images, taken from resident shards."""
    from raysurl.data.gather import Gather

    request = unit_of(table)
    images = Gather([shard for held in ray.get(tables) for shard in shards_of(held)])(request.index)
    yield _result(cloudpickle.loads(transform)(request, images), request)


def _result(made: Any, request: Any) -> Any:
    return with_unit(pa.table({"result": pa.array([pickle.dumps(made)], pa.large_binary())}), request)
