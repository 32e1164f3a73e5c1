"""A teacher whose embeddings were computed once: a Parquet file as pipelines/embed.py writes it, a row per sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl.errors import InputError
from raysurl.method import Batch

COMPARED = 1000  # names, evenly spaced, by which the order of the rows is recognised


class Named(Protocol):
    """The part of a data set that `check_names` needs."""

    def __len__(self) -> int: ...
    def name_of(self, index: int) -> str: ...


@dataclass(frozen=True)
class TableTeacher:
    """Embeddings `rows` (N, dim) by sample index, of images without augmentation; `present` (N,) bool."""

    rows: NDArray[np.float32]
    present: NDArray[np.bool_]
    path: Path
    on_host = True

    @property
    def dim(self) -> int:
        return self.rows.shape[1]

    def embed(self, x: Tensor) -> Tensor:
        raise InputError(f"teacher.name={self.path} holds embeddings and can see no view; name a network")

    def teach(self, batch: Batch, view: str) -> Batch:
        index = batch.index.cpu().numpy()  # the table may be larger than the device's memory
        if not self.present[index].all():
            missing = int(index[~self.present[index]][0])
            raise InputError(
                f"teacher.name={self.path} has no embedding of sample {missing}; embed the data again"
            )
        rows = torch.from_numpy(self.rows[index]).to(batch.index.device)
        return replace(batch, views={**batch.views, "teacher": rows})


def open_table(path: Path, num_samples: int, *, max_missing: float) -> TableTeacher:
    """Embeddings of `num_samples` samples; a share of at most `max_missing` may be absent, as unreadable ones are.

    Raises InputError for a file that does not hold them.
    """
    table = _read(path, ["index", "embedding"])
    if not pa.types.is_integer(table.schema.field("index").type) or table["index"].null_count:
        raise InputError(f"teacher.name={path}: its column index must hold the sample indices, whole numbers")
    index = table["index"].to_numpy()
    dim = _width(path, table.schema)
    flat = table["embedding"].combine_chunks()
    values = flat.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    if flat.null_count or values.size != len(index) * dim:
        raise InputError(f"teacher.name={path}: its embeddings are not all of {dim} values")
    if not np.isfinite(values).all():
        raise InputError(f"teacher.name={path} holds embeddings that are not finite")
    unique = np.unique(index)
    if len(unique) < len(index) or (len(index) and not 0 <= unique[0] <= unique[-1] < num_samples):
        raise InputError(
            f"teacher.name={path} must have one row for each sample index of 0 … {num_samples - 1}; its {len(index)}"
            " rows are of another data set"
        )
    if num_samples - len(index) > max_missing * num_samples:
        raise InputError(
            f"teacher.name={path} has embeddings of {len(index)} samples and the data set has {num_samples}; embed"
            " the same data"
        )
    rows, present = np.zeros((num_samples, dim), np.float32), np.zeros(num_samples, bool)
    rows[index], present[index] = values.reshape(-1, dim), True
    return TableTeacher(rows, present, path)


def width_of_table(path: Path) -> int:
    """Values of an embedding, from the file's schema."""
    try:
        return _width(path, pq.read_schema(path))
    except (OSError, pa.ArrowException):
        raise InputError(f"teacher.name={path} is not a readable Parquet file") from None


def check_names(path: Path, samples: Named) -> None:
    """Raises InputError where rows and samples of one index have different names: another data set, or order."""
    try:
        table = _read(path, ["index", "name"])
    except InputError:
        return  # a file without names: only its number of rows can be checked
    chosen = np.unique(np.linspace(0, len(table) - 1, COMPARED).astype(np.int64))
    rows = table.take(chosen)
    for index, name in zip(rows["index"].to_pylist(), rows["name"].to_pylist(), strict=True):
        if str(name) != str(samples.name_of(index)):
            raise InputError(
                f"teacher.name={path}: its sample {index} is {name}, and the data set's is {samples.name_of(index)};"
                " embed the data set of this recipe, with the same data.limit and seed"
            )


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        there = pq.read_schema(path).names
        if missing := [name for name in columns if name not in there]:
            raise InputError(
                f"teacher.name={path} has no column {' and '.join(missing)}; write it with pipelines/embed.py"
            )
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException):
        raise InputError(f"teacher.name={path} is not a readable Parquet file") from None


def _width(path: Path, schema: pa.Schema) -> int:
    kind = schema.field("embedding").type if "embedding" in schema.names else None
    if kind is None or not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        raise InputError(
            f"teacher.name={path} has no column embedding of fixed-size lists of floats; write it with"
            " pipelines/embed.py"
        )
    return int(kind.list_size)
