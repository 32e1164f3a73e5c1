"""How the samples of each kind of data are fetched: encoded bytes or an array each, nothing decoded.

A reader is cheap and picklable; it opens files when it reads. A sample that cannot be fetched comes back as a
DecodeError value, for one bad sample must not cost the others.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl.data import storage
from raysurl.data.decode import Array, DecodeError

Encoded = bytes | Array | DecodeError


class Reader(Protocol):
    """Reads `rows` of one group of one file.

    `in_memory`: reading never waits for a disk or a network once the process has loaded its array.
    `grouped`: many rows of a group cost little more than one, so that reading ahead pays.
    """

    in_memory: ClassVar[bool]
    grouped: ClassVar[bool]

    def read(self, path: str, group: int, rows: NDArray[np.int64]) -> Sequence[Encoded]: ...


@dataclass(frozen=True)
class FileReader:
    """One file, one sample (asked for more than once, it is read once). `root` is a local folder or URI."""

    root: str
    in_memory: ClassVar[bool] = False
    grouped: ClassVar[bool] = False

    def read(self, path: str, group: int, rows: NDArray[np.int64]) -> Sequence[Encoded]:
        try:
            return [storage.read_bytes(self.root, path)] * len(rows)
        except OSError as error:
            return [DecodeError(f"it cannot be opened: {error}")] * len(rows)


@dataclass(frozen=True)
class ParquetReader:
    """Rows of Parquet row groups; `column` is the leaf that holds the bytes (`image`, or `image.bytes`)."""

    root: str
    column: str
    in_memory: ClassVar[bool] = False
    grouped: ClassVar[bool] = True

    def read(self, path: str, group: int, rows: NDArray[np.int64]) -> Sequence[Encoded]:
        """`rows` count from the start of the file. A group is streamed, never held whole."""
        try:
            return self._read(path, group, rows)
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            return [DecodeError(f"its row group cannot be read: {error}")] * len(rows)

    def _read(self, path: str, group: int, rows: NDArray[np.int64]) -> Sequence[Encoded]:
        filesystem, base = storage.locate(self.root)
        result: list[Encoded] = [DecodeError("it is empty")] * len(rows)
        with filesystem.open_input_file(storage.join(base, path)) as stream, pq.ParquetFile(stream) as file:
            begin = sum(file.metadata.row_group(g).num_rows for g in range(group))
            order = np.argsort(rows, kind="stable")
            wanted = rows[order] - begin
            seen = 0
            for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=[self.column]):
                first, last = np.searchsorted(wanted, [seen, seen + len(batch)])
                column = batch.column(0)
                leaf = column.field(0) if column.type.num_fields else column
                for k in range(first, last):
                    value = leaf[int(wanted[k]) - seen].as_py()
                    result[order[k]] = DecodeError("it holds no bytes") if value is None else value
                seen += len(batch)
                if last == len(wanted):
                    break
        return result


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

    def read(self, path: str, group: int, rows: NDArray[np.int64]) -> Sequence[Encoded]:
        return list(load_once(self.origin)[rows])


@dataclass(frozen=True)
class NumpyFile:
    """A .npy file, or one array of an .npz file; `stamp` tells a changed file apart."""

    path: str
    member: str | None
    stamp: tuple[int, int] = (0, 0)

    def load(self) -> Array:
        return open_numpy(self.path, self.member)


def open_numpy(path: str, member: str | None) -> Any:
    """The array of a .npy file (mapped, where it is local) or of an .npz file; without a member its NpzFile.

    Raises OSError or ValueError. Pickled objects are refused.
    """
    if storage.is_uri(path):
        loaded = np.load(io.BytesIO(storage.read_bytes(path, "")), allow_pickle=False)
    else:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    return loaded if member is None or isinstance(loaded, np.ndarray) else loaded[member]


@dataclass(frozen=True)
class Digits:
    """The 8×8 grey digits embedded in scikit-learn, 0…16 scaled to 0…255."""

    def load(self) -> Array:
        images, _ = digits()
        return images


@lru_cache(maxsize=1)
def digits() -> tuple[Array, NDArray[np.int64]]:
    """Images (1797, 8, 8) uint8 and labels (1797,)."""
    from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    return images, data.target.astype(np.int64)
