"""Shards as rows of Arrow tables, which Ray hands from process to process without copying their pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from raysurl.data.dataset import Unreadable
from raysurl.data.decode import Array
from raysurl.data.shards import Shard


def to_table(shard: Shard, skipped: Sequence[Unreadable] = ()) -> Any:
    """One row: how the pixels are laid out and what could not be read, as JSON; the pixels and offsets."""
    head = {
        "dtype": str(shard.pixels.dtype),
        "shape": shard.pixels.shape,
        "shapes": None if shard.shapes is None else shard.shapes.tolist(),
        "skipped": [asdict(sample) for sample in skipped],
    }
    offsets = np.empty(0, np.int64) if shard.offsets is None else shard.offsets
    return pa.table(
        {"head": [json.dumps(head)], "pixels": _binary(shard.pixels), "offsets": _binary(offsets)}
    )


def shards_of(table: Any) -> Iterator[Shard]:
    """The rows of a table as shards whose arrays are views of the table's memory, read-only."""
    for row in range(len(table)):
        head = json.loads(table.column("head")[row].as_py())
        pixels = _view(table, "pixels", row, head["dtype"]).reshape(head["shape"])
        if head["shapes"] is None:
            yield Shard(pixels)
        else:
            shapes = np.array(head["shapes"], np.int32).reshape(-1, 2)
            yield Shard(pixels, _view(table, "offsets", row, "int64"), shapes)


def skipped_of(table: Any) -> list[Unreadable]:
    heads = [json.loads(text) for text in table.column("head").to_pylist()]
    return [Unreadable(**sample) for head in heads for sample in head["skipped"]]


def _binary(array: Array) -> Any:
    """An array's memory as a column of one value."""
    ends = pa.py_buffer(np.array([0, array.nbytes], np.int64))
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, ends, pa.py_buffer(array.reshape(-1))]
    )


def _view(table: Any, column: str, row: int, dtype: str) -> Array:
    """One value of a binary column without a copy, which Arrow's own scalars would make."""
    (chunk,) = table.column(column).slice(row, 1).chunks
    _, ends, values = chunk.buffers()
    begin, end = np.frombuffer(ends, np.int64, count=2, offset=8 * chunk.offset)
    return np.frombuffer(values, np.uint8)[begin:end].view(dtype)
