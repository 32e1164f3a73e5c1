"""The listing of a data set: which file, row group and row each sample is. Its position is the sample index.

It is made once, saved with the run, and compared on resume, so that an index means the same for a run's life.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl import plain
from raysurl.data import storage
from raysurl.data.depth import Depth
from raysurl.data.tree import FileEntry
from raysurl.errors import InputError, printable


@dataclass(frozen=True)
class Unreadable:
    """A sample that cannot be read: it keeps its index and leaves the plan.

    A folder or shard that could not be opened has index −1, for it is not listed, and stands for about `samples`.
    """

    index: int
    name: str
    reason: str
    samples: int = 1

    def __str__(self) -> str:
        about = f", about {self.samples:,} samples" if self.samples > 1 else ""
        return f"{printable(self.name)} ({self.reason}{about})"


@dataclass(frozen=True, eq=False)
class Listing:
    """N samples of F files under `root` (a folder, URI or data set name).

    `paths` (F,) strings relative to the root; `file` (N,) int32 into them; `group` (N,) int32 row group or
    −1; `row` (N,) int64 row within the file or −1. `stamps` (F, 2) int64: each file's size in bytes and time of its
    last change in ns (0: not known), by which a replaced file is noticed; None where there are no files.
    """

    root: str
    paths: Any
    file: NDArray[np.int32]
    group: NDArray[np.int32]
    row: NDArray[np.int64]
    stamps: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.file)

    @classmethod
    def of_files(cls, root: str, entries: Sequence[FileEntry]) -> Listing:
        """One sample per file."""
        none = np.full(len(entries), -1, np.int32)
        files = np.arange(len(entries), dtype=np.int32)
        paths = pa.array([entry.path for entry in entries], pa.large_string())
        return cls(root, paths, files, none, none.astype(np.int64), stamps_of(entries))

    @classmethod
    def of_rows(cls, root: str, rows: int, stamp: tuple[int, int] | None = None) -> Listing:
        """The rows of one array; `root` names it."""
        return cls.of_groups(root, [FileEntry("", *(stamp or (-1, 0)))], [[rows]], grouped=False)

    @classmethod
    def of_groups(
        cls, root: str, entries: Sequence[FileEntry], groups: list[list[int]], grouped: bool = True
    ) -> Listing:
        """The rows of files; `groups` holds the number of rows of each row group of each file."""
        counts = [sum(rows) for rows in groups]
        per_group = np.array([n for rows in groups for n in rows], np.int64)
        group_id = np.array([g for rows in groups for g in range(len(rows))], np.int32)
        group = np.repeat(group_id, per_group) if grouped else np.full(sum(counts), -1, np.int32)
        file = np.repeat(np.arange(len(entries), dtype=np.int32), counts)
        row = np.concatenate([np.arange(n, dtype=np.int64) for n in counts] or [np.empty(0, np.int64)])
        paths = pa.array([entry.path for entry in entries], pa.large_string())
        return cls(root, paths, file, group, row, stamps_of(entries))

    def as_one(self) -> Listing:
        """The same rows as those of one array, whose stamp is of all files."""
        stamp = (-1, 0)
        if self.stamps is not None:
            stamp = (int(self.stamps[:, 0].sum()), zlib.crc32(self.stamps.tobytes()) + 1)
        return Listing.of_rows(self.root, len(self), stamp)

    def select(self, index: NDArray[np.int64]) -> Listing:
        used, file = np.unique(self.file[index], return_inverse=True)
        return Listing(
            self.root,
            self.paths.take(pa.array(used)),
            file.astype(np.int32),
            self.group[index],
            self.row[index],
            None if self.stamps is None else self.stamps[used],
        )

    def path(self, index: int) -> str:
        return str(self.paths[int(self.file[index])])

    def name(self, index: int) -> str:
        """How messages call a sample: its path, and its row where a file holds many."""
        where = storage.join(self.root, self.path(index))
        return where if self.row[index] < 0 else f"{where} row {self.row[index]}"

    def stamp(self, index: int) -> tuple[int, int] | None:
        """Size and time of a sample's file when it was listed."""
        if self.stamps is None:
            return None
        size, time = self.stamps[self.file[index]].tolist()
        return size, time

    def table(self) -> Any:
        """Columns path (dictionary-encoded, relative), row_group, row; bytes and mtime of its file, where known."""
        path = pa.DictionaryArray.from_arrays(pa.array(self.file), self.paths)
        table = pa.table({"path": path, "row_group": self.group, "row": self.row})
        if self.stamps is None:
            return table
        size, time = self.stamps[self.file].T
        return table.append_column("bytes", pa.array(size)).append_column("mtime", pa.array(time))


def stamps_of(entries: Sequence[FileEntry]) -> NDArray[np.int64] | None:
    """(F, 2) of a listing's files; None where they are not known."""
    if any(entry.size < 0 for entry in entries):
        return None
    return np.array([(entry.size, entry.time) for entry in entries], np.int64).reshape(-1, 2)


def changed(then: Any, now: Any) -> Any:
    """Whether size or time differ, of one file or (…, 2) of many; a time of 0 is not known and differs from none."""
    then, now = np.asarray(then), np.asarray(now)
    times = (then[..., 1] != now[..., 1]) & (then[..., 1] != 0) & (now[..., 1] != 0)
    return (then[..., 0] != now[..., 0]) | times


@dataclass(frozen=True, eq=False)
class Saved:
    """What an earlier start of the run found: mask (N,), chosen mode, why samples were skipped, the pixels' range."""

    readable: NDArray[np.bool_]
    mode: Literal["resident", "streaming"]
    reasons: dict[int, str]
    depth: Depth | None = None

    def unreadable(self, listing: Listing) -> list[Unreadable]:
        return [Unreadable(index, listing.name(index), reason) for index, reason in self.reasons.items()]


def save(
    listing: Listing,
    path: str | Path,
    *,
    readable: NDArray[np.bool_],
    mode: str,
    reasons: dict[int, str],
    depth: Depth | None = None,
    class_names: Sequence[str] | None = None,
    label_values: Sequence[int] | None = None,
) -> None:
    """Write the manifest: columns path, row_group, row, bytes, mtime, readable; the rest as JSON in its metadata.

    `class_names`, `label_values`: by label, as people know them. Written beside and renamed, so that an interrupted
    write leaves no half manifest.
    """
    meta = {
        "root": listing.root,
        "mode": mode,
        "reasons": {str(k): v for k, v in reasons.items()},
        "depth": None if depth is None else depth.tree(),
        "class_names": None if class_names is None else list(class_names),
        "label_values": None if label_values is None else list(label_values),
    }
    table = listing.table().append_column("readable", pa.array(readable))
    table = table.replace_schema_metadata({"raysurl": json.dumps(meta)})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    pq.write_table(table, part, compression="zstd")
    part.replace(path)


def class_names(path: str | Path) -> tuple[str, ...]:
    """What people call the classes of a manifest, by label: names, or the data's own numbers; else ()."""
    try:
        meta = plain.mapping((pq.read_schema(path).metadata or {})[b"raysurl"])
        found = meta.get("class_names") or meta.get("label_values") or ()
        return tuple(str(name) for name in found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return ()


def depth_of(path: str | Path) -> Depth | None:
    """The range of a manifest's pixels, where there are wide ones; None where there is no manifest either."""
    try:
        return _depth_of(plain.mapping((pq.read_schema(path).metadata or {})[b"raysurl"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return None


def _depth_of(meta: Mapping[str, Any]) -> Depth | None:
    # an earlier version of this program took the high byte
    return Depth.of_tree(meta["depth"]) if "depth" in meta else Depth(0, 16)


def restore(listing: Listing, path: str | Path) -> Saved | None:
    """What was saved, or None where nothing was.

    Raises InputError, naming the first difference, where the data set no longer lists the same samples, or one of
    its files has changed since: the sample indices of the run, its order and its memory would silently mean others.
    """
    if not Path(path).is_file():
        return None
    try:
        table = pq.read_table(path)
        meta = plain.mapping(table.schema.metadata[b"raysurl"])
        names = table.column("path").combine_chunks().cast(pa.large_string())
        group, row = (_whole(table, name) for name in ("row_group", "row"))
        stamps = np.stack(
            [_whole(table, name) for name in ("bytes", "mtime") if name in table.column_names] or [row]
        )
        readable = table.column("readable").cast(pa.bool_()).to_numpy().astype(bool)
        reasons = {int(k): str(v) for k, v in meta["reasons"].items()}
        if meta["mode"] not in ("resident", "streaming") or not all(0 <= k < len(row) for k in reasons):
            raise ValueError("its metadata do not fit")
        depth = _depth_of(meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(f"{path} is not a manifest of this program ({why}); start a new run") from None
    _compare(listing, names, group, row, path)
    if listing.stamps is not None and len(stamps) == 2:
        _same_files(listing, stamps.T, readable, path)
    return Saved(readable, meta["mode"], reasons, depth)


def _whole(table: Any, name: str) -> NDArray[np.int64]:
    column = table.column(name)
    if column.null_count:
        raise ValueError(f"its column {name} misses values")
    return np.asarray(column.cast(pa.int64()).to_numpy())


_HINT = "; give the data set the run began with, or start a new run"


def _same_files(
    listing: Listing, then: NDArray[np.int64], readable: NDArray[np.bool_], path: str | Path
) -> None:
    assert listing.stamps is not None
    now = listing.stamps[listing.file]
    other = changed(then, now) & readable
    if not other.any():
        return
    first = int(np.argmax(other))
    count = len(np.unique(listing.file[other]))
    more = f" ({count:,} files have)" if count > 1 else ""
    before, after = int(then[first, 0]), int(now[first, 0])
    what = f"{before:,} bytes then, {after:,} now" if before != after else "its time differs"
    where = storage.join(listing.root, listing.path(first))
    raise InputError(
        f"{where} has changed since the run began{more}: {what} ({path}){_HINT}; a copy must keep the files' times"
    )


def _compare(listing: Listing, names: Any, group: Any, row: Any, path: str | Path) -> None:
    if len(names) != len(listing):
        raise InputError(
            f"the data set lists {len(listing):,} samples, the run's {path} {len(names):,}{_HINT}"
        )
    now = listing.paths.take(pa.array(listing.file))
    same = pc.equal(now, names).fill_null(False).to_numpy(zero_copy_only=False)
    same &= (listing.group == group) & (listing.row == row)
    if not same.all():
        first = int(np.argmin(same))
        then = f"{names[first].as_py()} row {row[first]}" if row[first] >= 0 else str(names[first].as_py())
        now_is = listing.name(first)
        raise InputError(f"sample {first} is now {now_is}, in the run's {path} it was {then}{_HINT}")
