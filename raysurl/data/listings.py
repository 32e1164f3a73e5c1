"""Image folders, Parquet files and NumPy arrays → samples: what is there, found without decoding any of it.

Each function takes the recipe's data section, the path to list, the recipe key that named it (for messages),
and, for a test set, the class names of the training set, so that a label means the same class in both.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl.data import matrices, storage
from raysurl.data.dataset import Samples
from raysurl.data.manifest import Listing
from raysurl.data.readers import ArrayReader, FileReader, NumpyFile, load_once, open_numpy
from raysurl.errors import InputError
from raysurl.recipe import Data

Labels = NDArray[np.int64]
Names = tuple[str, ...]

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga"),
)
_SPLITS = {"train", "val", "valid", "validation", "test"}
_ARRAY_NAMES = ("images", "image", "x", "X", "data")
MOST_CLASSES = 2**20
_LABEL_NAMES = ("labels", "label", "y", "Y", "targets")


def class_names(data: Data) -> Names | None:
    """Class names of the training set, for a test set's labels: () where they are numbers, None where it has none."""
    assert data.path is not None
    if data.name == "folder":
        return _folder_classes(data.path)
    samples = (parquet if data.name == "parquet" else npz)(data, data.path, "data.path", None)
    return samples.class_names if samples.class_names or samples.labels is None else ()


# -------------------------------------------------------------------- folders


def folder(data: Data, path: str, key: str, known: Names | None) -> Samples:
    """Images of a folder: flat, without labels, or one subfolder (of any depth) per class.

    A `val_annotations.txt` beside a flat folder `images` (Tiny ImageNet's test set) gives labels too.
    """
    path = storage.absolute(path)
    if storage.kind(path, key) == "file":
        name = "parquet" if path.endswith(".parquet") else "npz" if path.endswith((".npz", ".npy")) else None
        hint = f"use data.name={name} for it" if name else "give the folder that holds the images"
        raise InputError(f"{key}={path} is a file, not a folder; {hint}")
    entries = storage.list_files(path, key)
    images = [entry.path for entry in entries if entry.path.lower().endswith(IMAGE_ENDINGS)]
    if not images:
        raise InputError(
            f"{key}={path} holds no image files (of {len(entries)} files none ends in"
            f" {', '.join(IMAGE_ENDINGS[:6])} …); give a folder of images, flat or one folder per class"
        )
    labels, names = _folder_labels(path, images, known, key, {entry.path for entry in entries})
    rest = len(entries) - len(images)
    note = f"{rest} files that are not images by their ending left out" if rest else ""
    return Samples(Listing.of_files(path, images), FileReader(path), labels, names, note)


def _folder_labels(
    path: str, images: Sequence[str], known: Names | None, key: str, files: set[str]
) -> tuple[Labels | None, Names | None]:
    if "val_annotations.txt" in files:
        lines = storage.read_bytes(path, "val_annotations.txt").decode().splitlines()
        of_file = dict(line.split("\t")[:2] for line in lines if "\t" in line)
        return _label_ids([of_file.get(name.rsplit("/", 1)[-1]) for name in images], known, key)
    tops = [name.split("/", 1)[0] if "/" in name else None for name in images]
    folders = {top for top in tops if top is not None}
    if not folders:
        return None, None
    if None in tops:
        raise InputError(
            f"{key}={path} holds images both directly ({images[tops.index(None)]}) and in folders"
            f" ({min(folders)}); keep it flat, or one folder per class"
        )
    if "train" in folders and folders <= _SPLITS:
        test = next((s for s in ("val", "valid", "validation", "test") if s in folders), None)
        hint = f" data.eval_path={path}/{test}" if test else ""
        raise InputError(
            f"{key}={path} holds the splits {', '.join(sorted(folders))}, not classes;"
            f" give data.path={path}/train{hint}"
        )
    return _label_ids(tops, known, key)


def _folder_classes(path: str) -> Names | None:
    """Names of the folders right below `path`, without listing what is in them."""
    filesystem, base = storage.locate(path)
    found = filesystem.get_file_info(pa.fs.FileSelector(base))
    names = sorted(f.base_name for f in found if f.type == pa.fs.FileType.Directory and f.base_name[0] != ".")
    return tuple(names) or None


# -------------------------------------------------------------------- Parquet


def parquet(data: Data, path: str, key: str, known: Names | None) -> Samples:
    """Encoded images in Parquet: plain bytes, or the struct (bytes, path) of Hugging Face data sets; or vectors.

    `path` is a file, a folder, a glob, or a URI of any of these. Vectors: see `matrices.columns_of`.
    """
    root, names = _parquet_files(path, key)
    filesystem, base = storage.locate(root)
    groups, labels, column, classes = [], [], data.image_column, None
    vectors: set[tuple[str, ...] | None] = set()
    for name in names:
        where = storage.join(base, name)
        try:
            with filesystem.open_input_file(where) as stream, pq.ParquetFile(stream) as file:
                schema = file.schema_arrow
                vectors.add(of_vectors := matrices.columns_of(schema, data.image_column, data.label_column))
                named = (data.image_column, data.label_column, f"{key}={where}")
                column = of_vectors[0] if of_vectors else _image_leaf(schema, *named)
                has_labels = _has_labels(schema, data, f"{key}={where}")
                groups.append([file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
                if has_labels:
                    labels.append(file.read(columns=[data.label_column]).column(0).combine_chunks())
                    classes = classes or _hugging_face_names(schema, data.label_column)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{key}: {where} is not a readable Parquet file: {error}") from None
    listing, reader = Listing.of_groups(root, names, groups), matrices.reader(root, names, column, vectors)
    if isinstance(reader, ArrayReader):
        listing = Listing.of_rows(f"{root}:{','.join(names[:2])}", len(listing))
        matrices.check_finite(load_once(reader.origin), f"{key}={path}")
    if not labels:
        return Samples(listing, reader)
    if sum(map(len, labels)) != len(listing):
        raise InputError(f"{key}={path}: only some of its files have the label column {data.label_column!r}")
    ids, found = _label_ids(pa.chunked_array(labels), known, f"{key}={path}")
    return Samples(listing, reader, ids, found or classes)


def _parquet_files(path: str, key: str) -> tuple[str, list[str]]:
    """Root, and the files under it."""
    root, pattern = storage.split_glob(storage.absolute(path))
    if storage.kind(root, key) == "file":
        with_name = re.fullmatch(r"(.*)/([^/?]+)", root)  # a URI's query must stay with its root
        return (with_name[1], [with_name[2]]) if with_name else (root, [""])
    files = [entry.path for entry in storage.list_files(root, key)]
    wanted = [f for f in files if (pattern.fullmatch(f) if pattern else f.endswith((".parquet", ".pq")))]
    if not wanted:
        what = "no file matches" if pattern else "there is no .parquet file in"
        raise InputError(f"{what} {key}={path}; give a Parquet file, a folder of them, or a glob")
    return root, wanted


def _image_leaf(schema: Any, column: str, label: str, where: str) -> str:
    """The column to read for the bytes; InputError names the columns there are."""
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if column not in schema.names:
        wrong = matrices.not_numbers(schema, label)
        vectors = f"; as vectors all columns must be numbers, and these are not: {wrong}" if wrong else ""
        raise InputError(
            f"{where} has no column {column!r}; set data.image_column to one of {there}{vectors}"
        )
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column, kind = f"{column}.bytes", kind.field(kind.get_field_index("bytes")).type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise InputError(
            f"{where}: data.image_column={column} holds no encoded images (binary, or a struct with bytes);"
            f" its columns are {there}"
        )
    return column


def _has_labels(schema: Any, data: Data, where: str) -> bool:
    if data.label_column in schema.names:
        return True
    if data.label_column != Data.model_fields["label_column"].default:  # a resumed recipe states all keys
        there = ", ".join(schema.names)
        raise InputError(
            f"{where} has no column {data.label_column!r}; set data.label_column to one of {there}"
        )
    return False


def _hugging_face_names(schema: Any, column: str) -> Names | None:
    """Class names that Hugging Face data sets keep in the schema's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(features[column]["names"])
    except (TypeError, KeyError, ValueError):
        return None


# -------------------------------------------------------------------- NumPy


def npz(data: Data, path: str, key: str, known: Names | None) -> Samples:
    """A .npy file or an .npz archive: 8- or 16-bit images (N,H,W), (N,H,W,C), (N,C,H,W), or vectors (N,D).

    In an archive the array is the one named images, x or data, or the only one with two axes or more; labels
    or y are its labels.
    """
    path = storage.absolute(path)
    if storage.kind(path, key) == "folder":
        raise InputError(f"{key}={path} is a folder; data.name=npz reads one .npy or .npz file")
    try:
        opened = open_numpy(path, None)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{key}={path} is not a .npy or .npz file that can be read: {error}") from None
    member, labels = None, None
    if not isinstance(opened, np.ndarray):
        archive, shapes = opened, {}
        try:
            shapes = {name: archive[name].shape for name in archive.files}
            member = _array_name(shapes, f"{key}={path}")
            opened = archive[member]
            labels = next((archive[name] for name in _LABEL_NAMES if name in shapes), None)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{key}={path} cannot be read: {error}") from None
        except ValueError as error:
            raise error if isinstance(error, InputError) else InputError(f"{key}={path}: {error}") from None
    check_array(opened, f"{key}={path}")
    if opened.ndim == 2:
        matrices.check_finite(opened, f"{key}={path}")
    reader = ArrayReader(NumpyFile(path, member, storage.stamp(path)))
    listing = Listing.of_rows(path, len(opened))
    if labels is None:
        return Samples(listing, reader)
    if labels.size != len(opened):
        raise InputError(
            f"{key}={path} holds {len(opened)} samples and {labels.size} labels; give one label each"
        )
    ids, names = _label_ids(labels.reshape(-1), known, f"{key}={path}")
    return Samples(listing, reader, ids, names)


def _array_name(shapes: dict[str, tuple[int, ...]], where: str) -> str:
    named = [name for name in _ARRAY_NAMES if name in shapes]
    wide = [name for name, shape in shapes.items() if len(shape) >= 2 and name not in _LABEL_NAMES]
    if named or len(wide) == 1:
        return (named or wide)[0]
    there = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
    raise InputError(f"{where} holds {there}; name its images array images, x or data")


def check_array(array: Any, where: str) -> None:
    """InputError unless the array holds images or vectors, one per row."""
    valid = "8- or 16-bit images (N,H,W), (N,H,W,C), (N,C,H,W) with 1, 3 or 4 channels, or number vectors (N,D), D ≥ 1"
    shape, numbers = array.shape, array.dtype.kind in "uif"
    images = array.dtype in (np.uint8, np.uint16) and (
        array.ndim == 3 or (array.ndim == 4 and (shape[3] in (1, 3, 4) or shape[1] in (1, 3, 4)))
    )
    if not (images or (array.ndim == 2 and numbers)) or not all(shape[1:]):
        raise InputError(f"{where} holds {array.dtype} of shape {shape}; valid are {valid}")


# -------------------------------------------------------------------- labels


def _label_ids(values: Any, known: Names | None, where: str) -> tuple[Labels, Names | None]:
    """Labels as int64, −1 for none, and the class names where the labels are text.

    Text is numbered by sorted name, or by `known`; InputError where a name is not known, or a number is no class's.
    """
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values)])
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        there = sorted(name for name in pc.unique(column).to_pylist() if name is not None)
        names = known if known is not None else tuple(there)
        if known == () and there:
            raise InputError(f"{where}: its labels are text and those of the training set are numbers")
        if unknown := [name for name in there if name not in set(names)]:
            raise InputError(
                f"{where}: the class {unknown[0]!r} is not one of the training set's {len(names)}"
            )
        ids = pc.index_in(column, pa.array(names, column.type))
        return _filled(ids), names
    try:
        numbers = _filled(column)  # whole numbers stored as floats too
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"{where}: labels of type {column.type}; valid are integers or text") from None
    if len(numbers) and numbers.max() >= MOST_CLASSES:
        raise InputError(
            f"{where}: the labels run up to {numbers.max()}; number the classes 0, 1, 2, … (below {MOST_CLASSES:,})"
        )
    return numbers, None


def _filled(column: Any) -> Labels:
    return np.asarray(column.cast(pa.int64()).fill_null(-1).to_numpy(), np.int64)
