"""The listing of a data set: which file, row group and row each sample is. Its position is the sample index.

It is made once, saved with the run, and compared on resume, so that an index means the same for a run's life.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl.data import storage
from raysurl.errors import InputError


@dataclass(frozen=True)
class Unreadable:
    """A sample that cannot be read: it keeps its index and leaves the plan."""

    index: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True, eq=False)
class Listing:
    """N samples of F files under `root` (a folder, URI or data set name).

    `paths` (F,) strings relative to the root; `file` (N,) int32 into them; `group` (N,) int32 row group or
    −1; `row` (N,) int64 row within the file or −1.
    """

    root: str
    paths: Any
    file: NDArray[np.int32]
    group: NDArray[np.int32]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.file)

    @classmethod
    def of_files(cls, root: str, paths: list[str]) -> Listing:
        """One sample per file."""
        none = np.full(len(paths), -1, np.int32)
        files = np.arange(len(paths), dtype=np.int32)
        return cls(root, pa.array(paths, pa.large_string()), files, none, none.astype(np.int64))

    @classmethod
    def of_rows(cls, root: str, rows: int) -> Listing:
        """The rows of one array; `root` names it."""
        return cls.of_groups(root, [""], [[rows]], grouped=False)

    @classmethod
    def of_groups(cls, root: str, paths: list[str], groups: list[list[int]], grouped: bool = True) -> Listing:
        """The rows of files; `groups` holds the number of rows of each row group of each file."""
        counts = [sum(rows) for rows in groups]
        per_group = np.array([n for rows in groups for n in rows], np.int64)
        group_id = np.array([g for rows in groups for g in range(len(rows))], np.int32)
        group = np.repeat(group_id, per_group) if grouped else np.full(sum(counts), -1, np.int32)
        file = np.repeat(np.arange(len(paths), dtype=np.int32), counts)
        row = np.concatenate([np.arange(n, dtype=np.int64) for n in counts] or [np.empty(0, np.int64)])
        return cls(root, pa.array(paths, pa.large_string()), file, group, row)

    def select(self, index: NDArray[np.int64]) -> Listing:
        used, file = np.unique(self.file[index], return_inverse=True)
        return Listing(
            self.root,
            self.paths.take(pa.array(used)),
            file.astype(np.int32),
            self.group[index],
            self.row[index],
        )

    def path(self, index: int) -> str:
        return str(self.paths[int(self.file[index])])

    def name(self, index: int) -> str:
        """How messages call a sample: its path, and its row where a file holds many."""
        where = storage.join(self.root, self.path(index))
        return where if self.row[index] < 0 else f"{where} row {self.row[index]}"

    def table(self) -> Any:
        """Columns path (dictionary-encoded, relative), row_group, row."""
        path = pa.DictionaryArray.from_arrays(pa.array(self.file), self.paths)
        return pa.table({"path": path, "row_group": self.group, "row": self.row})


@dataclass(frozen=True, eq=False)
class Saved:
    """What an earlier start of the run found: mask (N,), chosen mode, why samples were skipped."""

    readable: NDArray[np.bool_]
    mode: Literal["resident", "streaming"]
    reasons: dict[int, str]

    def unreadable(self, listing: Listing) -> list[Unreadable]:
        return [Unreadable(index, listing.name(index), reason) for index, reason in self.reasons.items()]


def save(
    listing: Listing, path: str | Path, *, readable: NDArray[np.bool_], mode: str, reasons: dict[int, str]
) -> None:
    """Write the manifest: columns path, row_group, row, readable; the root, mode and reasons in its metadata.

    Written beside and renamed, so that an interrupted write leaves no half manifest.
    """
    meta = {"root": listing.root, "mode": mode, "reasons": {str(k): v for k, v in reasons.items()}}
    table = listing.table().append_column("readable", pa.array(readable))
    table = table.replace_schema_metadata({"raysurl": json.dumps(meta)})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    pq.write_table(table, part, compression="zstd")
    part.replace(path)


def restore(listing: Listing, path: str | Path) -> Saved | None:
    """What was saved, or None where nothing was.

    Raises InputError, naming the first difference, where the data set no longer lists the same samples: the
    sample indices of the run, its order and its memory would silently mean other samples.
    """
    if not Path(path).is_file():
        return None
    try:
        table = pq.read_table(path)
        meta = json.loads(table.schema.metadata[b"raysurl"])
        names = table.column("path").combine_chunks().cast(pa.large_string())
        group, row = table.column("row_group").to_numpy(), table.column("row").to_numpy()
        readable = table.column("readable").to_numpy().astype(bool)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a manifest of this program ({error}); start a new run") from None
    _compare(listing, names, group, row, path)
    return Saved(readable, meta["mode"], {int(k): v for k, v in meta["reasons"].items()})


def _compare(listing: Listing, names: Any, group: Any, row: Any, path: str | Path) -> None:
    hint = "; give the data set the run began with, or start a new run"
    if len(names) != len(listing):
        raise InputError(
            f"the data set lists {len(listing):,} samples, the run's {path} {len(names):,}{hint}"
        )
    now = listing.paths.take(pa.array(listing.file))
    same = pc.equal(now, names).to_numpy(zero_copy_only=False)
    same &= (listing.group == group) & (listing.row == row)
    if not same.all():
        first = int(np.argmin(same))
        then = f"{names[first].as_py()} row {row[first]}" if row[first] >= 0 else names[first].as_py()
        raise InputError(
            f"sample {first} is now {listing.name(first)}, in the run's {path} it was {then}{hint}"
        )
