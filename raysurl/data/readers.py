"""How the samples of each kind of data are fetched: encoded bytes or an array each, nothing decoded.

A reader is cheap and picklable; it opens files when it reads. A sample that cannot be fetched comes back as a
DecodeError value, for one bad sample must not cost the others.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl.data import archives, storage, tree
from raysurl.data.decode import Array, DecodeError
from raysurl.data.manifest import changed

Encoded = bytes | Array | DecodeError
Stamp = tuple[int, int]  # size in bytes, time of the last change in ns

_CHANGED = "its file has changed since the data were listed"


class Reader(Protocol):
    """Reads `rows` of one group of one file; `stamp`: its size and time when it was listed, see `Listing`.

    `in_memory`: reading never waits for a disk or a network once the process has loaded its array.
    `grouped`: many rows of a group cost little more than one, so that reading ahead pays.
    """

    in_memory: ClassVar[bool]
    grouped: ClassVar[bool]

    def read(
        self, path: str, group: int, rows: NDArray[np.int64], stamp: Stamp | None = None
    ) -> Sequence[Encoded]: ...


@dataclass(frozen=True)
class FileReader:
    """One file, one sample (asked for more than once, it is read once). `root` is a local folder or URI."""

    root: str
    in_memory: ClassVar[bool] = False
    grouped: ClassVar[bool] = False

    def read(
        self, path: str, group: int, rows: NDArray[np.int64], stamp: Stamp | None = None
    ) -> Sequence[Encoded]:
        try:
            content, now = storage.read_stamped(self.root, path)
        except OSError as error:
            return [DecodeError(f"it cannot be opened: {tree.reason(error)}")] * len(rows)
        if stamp and changed(stamp, now):
            return [DecodeError("it has changed since the data were listed")] * len(rows)
        return [content] * len(rows)


@dataclass(frozen=True)
class ParquetReader:
    """Rows of Parquet row groups; `column` holds the bytes, or a struct with `bytes`, in each file as it pleases."""

    root: str
    column: str
    in_memory: ClassVar[bool] = False
    grouped: ClassVar[bool] = True

    def read(
        self, path: str, group: int, rows: NDArray[np.int64], stamp: Stamp | None = None
    ) -> Sequence[Encoded]:
        """`rows` count from the start of the file. A group is streamed, never held whole."""
        try:
            result = self._read(path, group, rows)
        except storage.PARQUET_ERRORS as error:
            if not isinstance(error, FileNotFoundError) and self._changed(path, stamp):
                return [DecodeError(_CHANGED)] * len(rows)
            return [DecodeError(f"its row group cannot be read: {tree.reason(error)}")] * len(rows)
        return [DecodeError(_CHANGED)] * len(rows) if self._changed(path, stamp) else result

    def _changed(self, path: str, stamp: Stamp | None) -> bool:
        return stamp is not None and bool(changed(stamp, storage.stamp_of(self.root, path)))

    def _read(self, path: str, group: int, rows: NDArray[np.int64]) -> Sequence[Encoded]:
        result: list[Encoded] = [DecodeError("it is empty")] * len(rows)
        with storage.opened(self.root, path) as stream, pq.ParquetFile(stream) as file:
            begin = sum(file.metadata.row_group(g).num_rows for g in range(group))
            order = np.argsort(rows, kind="stable")
            wanted = rows[order] - begin
            seen = 0
            leaf_of = image_leaf(file.schema_arrow, self.column) or self.column
            for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=[leaf_of]):
                first, last = np.searchsorted(wanted, [seen, seen + len(batch)])
                column = batch.column(batch.schema.get_field_index(self.column))
                leaf = column.field("bytes") if pa.types.is_struct(column.type) else column
                for k in range(first, last):
                    value = leaf[int(wanted[k]) - seen].as_py()
                    result[order[k]] = DecodeError("it holds no bytes") if value is None else value
                seen += len(batch)
                if last == len(wanted):
                    break
        return result


def image_leaf(schema: Any, column: str) -> str | None:
    """The column to read for the bytes of images, `image` or `image.bytes`; None where it holds none."""
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column, kind = f"{column}.bytes", kind.field(kind.get_field_index("bytes")).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    of_bytes = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
        pa.types.is_null,  # of a file in which all are missing
    )
    return column if any(holds(kind) for holds in of_bytes) else None


class Origin(Protocol):
    """Where an array comes from; hashable, so that each process loads it once."""

    def load(self) -> Array: ...

    def __hash__(self) -> int: ...


@lru_cache(maxsize=4)
def load_once(origin: Origin) -> Array:
    return origin.load()


@dataclass(frozen=True)
class ArrayReader:
    """Rows of an array (N, …) that is loaded, or mapped into memory, once per process."""

    origin: Origin
    in_memory: ClassVar[bool] = True
    grouped: ClassVar[bool] = False

    def read(
        self, path: str, group: int, rows: NDArray[np.int64], stamp: Stamp | None = None
    ) -> Sequence[Encoded]:
        if stamp and isinstance(self.origin, NumpyFile) and self.origin.changed(stamp):
            return [DecodeError(_CHANGED)] * len(rows)  # it is mapped, so that other values would be read
        return list(load_once(self.origin)[rows])


@dataclass(frozen=True)
class NumpyFile:
    """A .npy file, or one array of an .npz file; `stamp` tells a changed file apart."""

    path: str
    member: str | None
    stamp: tuple[int, int] = (0, 0)

    def load(self) -> Array:
        return archives.read(self.path, self.member, self.path)

    def changed(self, stamp: Stamp) -> bool:
        return not storage.is_uri(self.path) and bool(changed(stamp, storage.stamp(self.path)))


@dataclass(frozen=True)
class Digits:
    """The 8×8 grey digits embedded in scikit-learn, 0…16 scaled to 0…255."""

    def load(self) -> Array:
        images, _ = digits()
        return images


@lru_cache(maxsize=1)
def digits() -> tuple[Array, NDArray[np.int64]]:
    """Images (1797, 8, 8) uint8 and labels (1797,)."""
    # read from its file: importing scikit-learn takes each process, workers' too, more than a second
    found = find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    with gzip.open(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return images, table[:, -1].astype(np.int64)
