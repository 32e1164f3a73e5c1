"""Matrices as data: rows of numbers in a Parquet file, and the checks that every matrix must pass.

A row is a sample. In Parquet the numbers are one column of lists (`embedding`, as `embed.py` writes it), or one
column each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl.data import storage
from raysurl.data.readers import ArrayReader, ParquetReader
from raysurl.data.tree import FileEntry, reason
from raysurl.errors import InputError

BLOCK_VALUES = 2**22  # values checked at once: a mapped file is never held whole
NOT_FEATURES = ("index", "name")  # what `embed.py` writes beside the vectors


@dataclass(frozen=True)
class ParquetMatrix:
    """Columns of Parquet files as one array (N, D) float32; `stamp` tells changed files apart."""

    root: str
    files: tuple[str, ...]
    columns: tuple[str, ...]
    stamp: tuple[tuple[int, int], ...]

    def load(self) -> NDArray[np.float32]:
        """Raises InputError for rows of different lengths, and for numbers that are missing."""
        parts = []
        for name in self.files:
            where = storage.join(self.root, name)
            try:
                with storage.opened(self.root, name) as stream, pq.ParquetFile(stream) as file:
                    table = file.read(columns=list(self.columns))
            except storage.PARQUET_ERRORS as error:
                raise InputError(f"{where} cannot be read: {reason(error)}") from None
            if not len(table):
                continue
            parts.append(_array(table, self.columns, where))
            if parts[-1].shape[1] != parts[0].shape[1]:
                raise InputError(
                    f"{where} has rows of {parts[-1].shape[1]} numbers and the first file {parts[0].shape[1]};"
                    " all rows must have as many"
                )
        return np.concatenate(parts) if parts else np.empty((0, 1), np.float32)


def columns_of(schema: Any, named: str, label: str) -> tuple[str, ...] | None:
    """The columns that hold the features of a Parquet file, None where it holds images or nothing of the kind.

    That is the column `named`, or the only other one, of lists of numbers; else all columns of numbers but the
    label, where no column is called `named`.
    """
    lists = [field.name for field in schema if _is_list(field.type) and _is_number(field.type.value_type)]
    if named in schema.names:
        return (named,) if named in lists else None
    if len(lists) == 1:
        return (lists[0],)
    rest = [field for field in schema if field.name not in (label, *NOT_FEATURES)]
    if lists or not rest or not all(_is_number(field.type) for field in rest):
        return None
    return tuple(field.name for field in rest)


def not_numbers(schema: Any, label: str) -> str:
    """Which columns keep a file without images from being a matrix; empty where none does."""
    rest = [field for field in schema if field.name not in (label, *NOT_FEATURES)]
    kinds = {field.name: field.type.value_type if _is_list(field.type) else field.type for field in rest}
    return ", ".join(f"{field.name} ({field.type})" for field in rest if not _is_number(kinds[field.name]))


def reader(
    root: str, files: Sequence[FileEntry], column: str, vectors: set[tuple[str, ...] | None]
) -> ParquetReader | ArrayReader:
    """For images in `column`, or for vectors, whose columns are the one member of `vectors`.

    Raises InputError where the files differ in that.
    """
    if len(vectors) > 1:
        raise InputError(
            f"the Parquet files of {root} differ in their columns; all must hold images, or vectors alike"
        )
    (columns,) = vectors
    if columns is None:
        return ParquetReader(root, column)
    stamps = tuple((entry.size, entry.time) for entry in files)
    return ArrayReader(ParquetMatrix(root, tuple(entry.path for entry in files), columns, stamps))


def check_finite(matrix: NDArray[Any], where: str) -> None:
    """Raises InputError where a value of matrix (N, D) is NaN or infinite in single precision."""
    step = max(1, BLOCK_VALUES // max(1, matrix.shape[1]))
    bad, first = 0, -1
    for start in range(0, len(matrix), step):
        with np.errstate(over="ignore"):
            broken = ~np.isfinite(matrix[start : start + step].astype(np.float32)).all(axis=1)
        if broken.any():
            first = start + int(np.argmax(broken)) if first < 0 else first
            bad += int(broken.sum())
    if bad:
        raise InputError(
            f"{where}: {bad} of {len(matrix)} rows hold a value that is not finite, the first is row {first};"
            " fill or remove them"
        )


def _array(table: Any, columns: tuple[str, ...], where: str) -> NDArray[np.float32]:
    if not _is_list(table.schema.field(columns[0]).type):
        return np.stack([_numbers(table.column(name), where) for name in columns], axis=1)
    column = table.column(columns[0]).combine_chunks()
    lengths = np.asarray(column.value_lengths().fill_null(0)) if hasattr(column, "value_lengths") else None
    if lengths is None:  # a fixed_size_list
        lengths = np.full(len(column), column.type.list_size)
    if column.null_count or (len(lengths) and lengths.min() != lengths.max()) or not lengths.all():
        raise InputError(
            f"{where}: the lists of column {columns[0]!r} have {lengths.min()} to {lengths.max()} numbers,"
            f" {column.null_count} are missing; all rows must have as many"
        )
    return _numbers(column.flatten(), where).reshape(len(column), -1)


def _numbers(column: Any, where: str) -> NDArray[np.float32]:
    if column.null_count:
        raise InputError(
            f"{where}: {column.null_count} numbers are missing (null); fill or remove their rows"
        )
    return np.asarray(column.cast(pa.float32(), safe=False).to_numpy(), np.float32)


def _is_list(kind: Any) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: Any) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
