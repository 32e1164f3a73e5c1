"""Embeddings as the tasks of curation see them: unit rows, and a table of what each row is of.

Letters: N rows, D values of an embedding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl import plain
from raysurl.data.storage import PARQUET_ERRORS
from raysurl.embed import room
from raysurl.errors import InputError, first_line
from raysurl.paths import given_path

Rows = NDArray[np.float32]
BLOCK = 8192  # rows that are worked on at once
WRITTEN_BY = "write it with `raysurl embed`"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """N embeddings, `rows` (N, D) fp32 of length 1, in the order of their file.

    `table`: N rows of columns name, path, row, label, and, where known, pixels (a digest of the decoded image), height
    and width. `about`: what the file says of model and data; empty where there is no file. `source`: the file.
    """

    rows: Rows
    table: Any
    about: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        return int(self.rows.shape[1])

    def names(self, index: NDArray[np.int64]) -> list[str]:
        return list(self.table["name"].take(pa.array(index)).to_pylist())

    def areas(self) -> NDArray[np.int64]:
        """(N,) pixels of each image; 0 where the file does not say."""
        if not {"height", "width"} <= set(self.table.column_names):
            return np.zeros(len(self), np.int64)
        height, width = (
            np.asarray(self.table[name].fill_null(0).to_numpy(), np.int64) for name in ("height", "width")
        )
        return height * width

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        """(number of the first row, rows (n, D)), block by block."""
        for start in range(0, len(self), BLOCK):
            yield start, self.rows[start : start + BLOCK]

    @property
    def model(self) -> str:
        """The digest of the network that made the rows; empty where it is not known."""
        return model_of(self.about)


def model_of(about: Mapping[str, Any]) -> str:
    """The digest of the network that a note on embeddings names; empty where it names none."""
    model = about.get("model")
    return str(model.get("sha256", "")) if isinstance(model, dict) else ""


def columns_of(table: Any, rows: NDArray[np.int64], prefix: str = "") -> dict[str, Any]:
    """What rows of a table of embeddings are of, as columns of a list."""
    some = pa.array(rows)
    return {f"{prefix}{key}": table[key].take(some) for key in ("name", "path", "row", "label")}


def embeddings_of(given: Any, names: Sequence[str] | None = None) -> Embeddings:
    """Embeddings of a file that `raysurl embed` wrote, or of an array or tensor (N, D) of floats.

    `names`: what the rows of an array are called, by default their numbers. Raises InputError for anything else, and
    for a row that is not finite or all zeros, which has no direction.
    """
    if isinstance(given, Embeddings):
        return given
    if isinstance(given, str | os.PathLike):
        return read_embeddings(os.fspath(given))
    array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    if array.ndim != 2 or not array.size or array.dtype.kind != "f":
        raise InputError(
            f"embeddings of shape {array.shape} and type {array.dtype} must be (N, D) floats, or a file that"
            " `raysurl embed` wrote"
        )
    if names is not None and len(names) != len(array):
        raise InputError(f"{len(names)} names were given for {len(array)} embeddings")
    called = [str(name) for name in names] if names is not None else [str(i) for i in range(len(array))]
    rows = np.empty(array.shape, np.float32)
    for start in range(0, len(array), BLOCK):
        rows[start : start + BLOCK] = unit(array[start : start + BLOCK], start, "embeddings")
    nothing = np.full(len(array), -1, np.int64)
    table = pa.table(
        {"name": pa.array(called, pa.large_string()), "path": called, "row": nothing, "label": nothing}
    )
    return Embeddings(rows, table)


def unit(block: NDArray[Any], start: int, what: str) -> Rows:
    """Rows (n, D), the first of which is number `start`, of length 1. Raises InputError for those that have none."""
    wide = np.asarray(block, np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    bad = ~np.isfinite(length[:, 0]) | (length[:, 0] == 0)
    if bad.any():
        first = int(np.argmax(bad))
        kind = "all zeros" if length[first, 0] == 0 else "not finite"
        raise InputError(
            f"{what}: row {start + first} is {kind}, and has no direction to compare; leave it out"
        )
    return (wide / length).astype(np.float32)


def taken(rows: Rows, index: NDArray[np.int64]) -> Rows:
    """`rows[index]` of distinct, rising numbers: without a copy where these are all."""
    return rows if len(index) == len(rows) else rows[index]


def codes_of(tables: Sequence[Any]) -> NDArray[np.int64] | None:
    """(N,) numbers of the rows of tables, one after the other: equal where the decoded images have equal pixels.

    None where a table does not say.
    """
    if any("pixels" not in t.column_names or t["pixels"].null_count for t in tables):
        return None
    column = pa.chunked_array([chunk for t in tables for chunk in t["pixels"].chunks])
    codes = column.combine_chunks().dictionary_encode().indices
    return np.asarray(codes.to_numpy(zero_copy_only=False), np.int64)


# -------------------------------------------------------------------- files


class StoredRows:
    """Unit rows of a file, read anew each time and not held. Raises InputError as `read_embeddings`."""

    def __init__(self, given: str, key: str = "embeddings") -> None:
        self.path, self.key = given_path(key, given).absolute(), key
        file, self.about = opened(self.path, key)
        with file:
            self.count: int = file.metadata.num_rows
            self.dim: int = file.schema_arrow.field("embedding").type.list_size

    def __len__(self) -> int:
        return self.count

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        file, _ = opened(self.path, self.key)
        with file:
            for start, batch in batches(file, self.path, self.key, ["embedding"]):
                yield start, unit(values_of(batch, self.path, self.key), start, f"{self.key}={self.path}")


def read_embeddings(given: str, key: str = "embeddings") -> Embeddings:
    """The embeddings of a Parquet file, read by row groups. Raises InputError for a file that holds none."""
    path = given_path(key, given).absolute()
    file, about = opened(path, key)
    with file:
        columns = [name for name in file.schema_arrow.names if name != "embedding"]
        dim = file.schema_arrow.field("embedding").type.list_size
        rows = room(file.metadata.num_rows, dim).numpy()
        tables = []
        for start, batch in batches(file, path, key):
            rows[start : start + len(batch)] = unit(values_of(batch, path, key), start, f"{key}={path}")
            tables.append(batch.select(columns))
        table = pa.Table.from_batches(tables)
    return Embeddings(rows, table, about, path)


def opened(path: Path, key: str) -> tuple[Any, dict[str, Any]]:
    """The Parquet file and what it says of itself, checked as far as that can be done without reading the rows."""
    try:
        file = pq.ParquetFile(path)
    except PARQUET_ERRORS as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else "is not a readable Parquet file"
        raise InputError(f"{key}={path} {why}; {WRITTEN_BY}") from None
    schema = file.schema_arrow
    kind: Any = schema.field("embedding").type if "embedding" in schema.names else pa.null()
    fits = pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)
    if missing := [name for name in ("name", "path", "row", "label") if name not in schema.names]:
        raise InputError(f"{key}={path} has no column {' and '.join(missing)}; {WRITTEN_BY}")
    if not fits or kind.list_size < 1:
        raise InputError(f"{key}={path} has no column embedding of fixed-size lists of floats; {WRITTEN_BY}")
    if not file.metadata.num_rows:
        raise InputError(f"{key}={path} holds no embeddings")
    try:
        about = plain.mapping((schema.metadata or {}).get(b"raysurl", b"{}"))
    except ValueError:
        about = {}
    return file, about


def batches(file: Any, path: Path, key: str, columns: list[str] | None = None) -> Iterator[tuple[int, Any]]:
    """(number of the first row, at most BLOCK rows) of a Parquet file. Raises InputError where it is damaged."""
    start = 0
    found = file.iter_batches(batch_size=BLOCK, columns=columns)
    while True:
        try:
            batch = next(found, None)
        except PARQUET_ERRORS as error:
            raise InputError(f"{key}={path} cannot be read: {first_line(error)}; {WRITTEN_BY}") from None
        if batch is None:
            return
        yield start, batch
        start += len(batch)


def values_of(batch: Any, path: Path, key: str) -> NDArray[Any]:
    """(n, D) of a batch of rows."""
    column = batch.column(batch.schema.get_field_index("embedding"))
    values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    if column.null_count or values.size != len(batch) * column.type.list_size:
        raise InputError(f"{key}={path}: some rows have no embedding; {WRITTEN_BY}")
    return values.reshape(len(batch), -1)
