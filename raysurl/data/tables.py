"""Parquet files → samples: encoded images, or vectors, with labels from a column or from the names of folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysurl import plain
from raysurl.data import matrices, storage
from raysurl.data.dataset import Samples, Unreadable
from raysurl.data.folders import without_test_files
from raysurl.data.labels import Classes, Names, number
from raysurl.data.manifest import Listing
from raysurl.data.readers import ArrayReader, image_leaf, load_once
from raysurl.data.tree import FileEntry, Tree, reason
from raysurl.errors import InputError
from raysurl.recipe import Data

ENDINGS = (".parquet", ".pq")
MOST_ROWS = 2**30
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class _File:
    """What the head of a file says: its row groups' rows, the columns of its vectors, if any, and its labels."""

    rows: list[int]
    vectors: tuple[str, ...] | None
    labels: Any
    names: Names | None


def parquet(data: Data, path: str, key: str, known: Classes | None) -> Samples:
    """Encoded images in Parquet: plain bytes, or the struct (bytes, path) of Hugging Face data sets; or vectors.

    `path` is a file, a folder, a glob, or a URI of any of these. Vectors: see `matrices.columns_of`. Files may differ
    in the types of their columns. A file that cannot be opened is left out and named, see `Samples.missing`.
    """
    root, tree = _files(path, key)
    entries, of_test = without_test_files(data, key, tree.files)
    found: list[tuple[FileEntry, _File]] = []
    lost = [(entry.path, entry.reason, entry.folder) for entry in tree.missing]
    for entry in entries:
        where = storage.join(root, entry.path)
        try:
            with storage.opened(root, entry.path) as stream, pq.ParquetFile(stream) as file:
                found.append((entry, _head(file, data, entry.path, f"{key}={where}")))
        except storage.PARQUET_ERRORS as error:
            lost.append((entry.path, f"it is not a readable Parquet file: {reason(error)}", False))
    if not found:
        first = f"{storage.join(root, lost[0][0])} ({lost[0][1]})"
        raise InputError(f"{key}={path}: no Parquet file could be opened: {first}")
    samples = _listed(data, root, found, f"{key}={path}")
    samples = samples.with_note(tree.remark(), of_test)
    mean = max(len(samples) // len(found), 1)
    missing = (Unreadable(-1, storage.join(root, name), why, mean) for name, why, _ in lost)
    samples = _labelled(samples, found, known, f"{key}={path}")
    return samples.with_missing(tuple(missing))


def _listed(data: Data, root: str, found: Sequence[tuple[FileEntry, _File]], where: str) -> Samples:
    entries = [entry for entry, _ in found]
    if sum(sum(file.rows) for _, file in found) > MOST_ROWS:
        raise InputError(f"{where} claims more than {MOST_ROWS:,} rows; split the data set")
    reader = matrices.reader(root, entries, data.image_column, {file.vectors for _, file in found})
    listing = Listing.of_groups(root, entries, [file.rows for _, file in found])
    if isinstance(reader, ArrayReader):
        listing = Listing.of_groups(
            f"{root}:{','.join(entry.path for entry in entries[:2])}",
            entries,
            [[sum(file.rows)] for _, file in found],
            grouped=False,
        )
        listing = listing.as_one()
        matrix = load_once(reader.origin)
        if len(matrix) != len(listing):
            raise InputError(f"{where} claims {len(listing)} rows and holds {len(matrix)}; it is damaged")
        matrices.check_finite(matrix, where)
    return Samples(listing, reader)


def _labelled(
    samples: Samples, found: Sequence[tuple[FileEntry, _File]], known: Classes | None, where: str
) -> Samples:
    parts = [(entry.path or where, file.labels) for entry, file in found if file.labels is not None]
    if not parts:
        return samples
    if len(parts) < len(found):
        without = next(entry.path for entry, file in found if file.labels is None)
        raise InputError(
            f"{where}: only some of its files have labels, {without} has none; give all the label column"
        )
    if wrong := next(
        (at for (at, labels), (_, file) in zip(parts, found, strict=True) if len(labels) != sum(file.rows)),
        None,
    ):
        raise InputError(f"{where}: {wrong} holds another number of labels than of rows; it is damaged")
    names = next((file.names for _, file in found if file.names), None)
    return samples.labelled(number(parts, known, where, names))


def _head(file: Any, data: Data, path: str, where: str) -> _File:
    schema = file.schema_arrow
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise InputError(f"{where} has two columns named {twice[0]!r}; rename one")
    column = label_column(data)
    rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    if any(count < 0 for count in rows):
        raise pa.ArrowInvalid("its row groups have less than no rows")
    vectors = matrices.columns_of(schema, data.image_column, column or data.label_column)
    if vectors is None:
        _check_images(schema, data.image_column, column or data.label_column, where)
    elif vectors == (data.image_column,):
        _check_no_bytes(file, data.image_column, where)
    labels, names = None, None
    if column is not None and column in schema.names:
        labels = file.read(columns=[column]).column(column).combine_chunks()
        names = _hugging_face_names(schema, column)
    elif column is not None:
        labels = _of_partition(path, column, sum(rows))
        _check_column(schema, data, column, labels, where)
    return _File(rows, vectors, labels, names)


def label_column(data: Data) -> str | None:
    """The column of the labels; None where none are wanted. Raises InputError for what only folders have."""
    if data.labels is None:
        return data.label_column
    if data.labels == "folder" or data.labels.lower().endswith(".csv"):
        raise InputError(
            f"data.labels={data.labels} is for data.name=folder; with data.name={data.name} name a column, or none"
        )
    return None if data.labels == "none" else data.labels


def _check_column(schema: Any, data: Data, column: str, labels: Any, where: str) -> None:
    default = Data.model_fields["label_column"].default  # a resumed recipe states all keys
    if labels is None and (data.labels is not None or column != default):
        there = ", ".join(schema.names)
        named = "data.labels" if data.labels is not None else "data.label_column"
        raise InputError(f"{where} has no column {column!r}; set {named} to one of {there}")


def _of_partition(path: str, column: str, count: int) -> Any:
    """Labels of a file in a folder `label=a`, as partitioned tables are laid out."""
    parts = [
        part.removeprefix(f"{column}=") for part in path.split("/")[:-1] if part.startswith(f"{column}=")
    ]
    if not parts:
        return None
    value = unquote(parts[-1])
    if value == NO_PARTITION:
        return pa.nulls(count)
    if re.fullmatch(r"-?\d{1,18}", value):
        return pa.array(np.full(count, int(value)))
    return pa.array(np.full(count, value, object), pa.large_string())


def _files(path: str, key: str) -> tuple[str, Tree]:
    """Root, and the files under it."""
    root, pattern = storage.split_glob(storage.absolute(path))
    if storage.kind(root, key) == "file":
        with_name = re.fullmatch(r"(.*)/([^/?]+)", root)  # a URI's query must stay with its root
        above, name = (with_name[1] or "/", with_name[2]) if with_name else (root, "")
        key_of = storage.identity(root, "")
        return above, Tree([FileEntry(storage.text_name(name, root), *storage.stamp(root), key_of)])
    tree = storage.list_files(root, key)
    wanted = [entry for entry in tree.files if _wanted(entry.path, pattern)]
    missing = [entry for entry in tree.missing if entry.folder or _wanted(entry.path, pattern)]
    if not wanted:
        what = "no file matches" if pattern else "there is no .parquet file in"
        lost = f" ({missing[0].path}: {missing[0].reason})" if missing else ""
        raise InputError(f"{what} {key}={path}{lost}; give a Parquet file, a folder of them, or a glob")
    return root, Tree(wanted, missing, tree.repeated)


def _wanted(path: str, pattern: re.Pattern[str] | None) -> bool:
    return bool(pattern.fullmatch(path)) if pattern else path.endswith(ENDINGS)


def _check_images(schema: Any, column: str, label: str, where: str) -> None:
    """InputError, which names the columns there are, unless one holds images."""
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if column not in schema.names:
        wrong = matrices.not_numbers(schema, label)
        vectors = f"; as vectors all columns must be numbers, and these are not: {wrong}" if wrong else ""
        raise InputError(
            f"{where} has no column {column!r}; set data.image_column to one of {there}{vectors}"
        )
    if image_leaf(schema, column) is None:
        raise InputError(
            f"{where}: data.image_column={column} holds no encoded images (binary, or a struct with bytes);"
            f" its columns are {there}"
        )


def _check_no_bytes(file: Any, column: str, where: str) -> None:
    """InputError where lists of small numbers are the bytes of encoded images, as some programs write these."""
    kind = file.schema_arrow.field(column).type.value_type
    if not (pa.types.is_uint8(kind) or pa.types.is_int8(kind)):
        return
    batch = next(file.iter_batches(batch_size=1, columns=[column]), None)
    first = batch.column(0)[0].as_py() if batch is not None and len(batch) else None
    head = bytes(value & 0xFF for value in first[:12] if value is not None) if first else b""
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")):
        raise InputError(
            f"{where}: data.image_column={column} holds encoded images as lists of numbers; store them as binary"
        )


def _hugging_face_names(schema: Any, column: str) -> Names | None:
    """Class names that Hugging Face data sets keep in the schema's metadata."""
    try:
        features = plain.mapping(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (TypeError, KeyError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None
