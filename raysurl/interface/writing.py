"""Images that are given from Python, as a file in the run directory that every reader of the package can read.

The name holds what the file holds, so that it is written once and never again: a run that goes on with the same images
finds it, and one with others is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from raysurl.data.decode import Array
from raysurl.errors import InputError, storage_error
from raysurl.interface.images import GivenItems, dense, items_of, located, scalar
from raysurl.paths import whole

ROWS = 256  # images of a row group
Known = list[int | str | None]


def written(data: Any, labels: Any, folder: Path, split: str) -> dict[str, Any]:
    """The settings data.name and data.path of whatever is given; what is only in memory is written into `folder`.

    `split`: train or eval. `labels`: one for each image, instead of those that the data hold. Raises InputError.
    """
    what, of_labels = ("data", "labels") if split == "train" else ("eval_data", "eval_labels")
    if settings := located(data):
        if labels is not None:
            raise InputError(
                f"{of_labels}= is for images that are given from Python; labels of files are named by data.labels"
            )
        return settings
    array = dense(data, what)
    given = items_of(data, what) if array is None else array
    known = None if labels is None else label_list(labels, len(given), of_labels)
    text = known is not None and any(isinstance(label, str) for label in known)
    if array is not None and text and array.ndim > 2 and None in (known or ()):
        array = None  # a NumPy array of text has no word for none
        given = items_of(data, what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if array is not None:
            return {"data.name": "npz", "data.path": str(_write_array(array, known, folder / split))}
        assert isinstance(given, GivenItems)
        return {"data.name": "parquet", "data.path": str(_write_items(given, known, folder / split))}
    except OSError as error:
        raise storage_error(error, folder) or error from None


def label_list(labels: Any, count: int, what: str) -> Known:
    """One for each of `count` images. Raises InputError."""
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    found = np.asarray(labels, object if isinstance(labels, list | tuple) else None)
    if found.shape != (count,):
        raise InputError(
            f"{what} has the shape {found.shape} and there are {count} images; give one label each"
        )
    known = [scalar(label) for label in found]
    for label, given in zip(known, found, strict=True):
        if label is None and given is not None and given == given:  # NaN is none, as pandas has it
            raise InputError(
                f"{what} holds {given!r}; labels are whole numbers or text, and None where there is none"
            )
    for label in known:
        if isinstance(label, int) and not -(2**63) <= label < 2**63:
            raise InputError(f"{what} holds {str(label)[:40]}; labels are whole numbers of 64 bits, or text")
    if len({type(label) for label in known if label is not None} - {bool}) > 1:
        raise InputError(f"{what} holds numbers beside text; give one kind")
    return known


# -------------------------------------------------------------------- one array


def _write_array(array: Array, labels: Known | None, target: Path) -> Path:
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    for row in array:
        digest.update(np.ascontiguousarray(row).data)
    arrays: dict[str, Any] = {"images": array}
    if labels is not None:
        arrays["labels"] = _label_array(labels)
        digest.update(json.dumps(labels).encode())
    target = _named(target, digest.hexdigest(), ".npz")
    if not target.is_file():
        with whole(target) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    return target


def _label_array(labels: Known) -> Array:
    if any(isinstance(label, str) for label in labels):
        return np.array(labels, np.str_)
    return np.array([-1 if label is None else label for label in labels], np.int64)


# -------------------------------------------------------------------- many images


def _write_items(given: GivenItems, labels: Known | None, target: Path) -> Path:
    digest = hashlib.sha256()
    first = [given[i] for i in range(min(ROWS, len(given)))]
    known: Sequence[Any] = [label for _, label in first] if labels is None else labels
    schema = _schema(known, getattr(given.data, "classes", None))
    # its name follows from what it holds, which is known when it is written
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file, pq.ParquetWriter(file, schema) as writer:
            for begin in range(0, len(given), ROWS):
                rows = first if not begin else [given[i] for i in range(begin, min(begin + ROWS, len(given)))]
                of_rows = labels[begin : begin + ROWS] if labels is not None else [label for _, label in rows]
                writer.write_table(_table(rows, of_rows, schema, begin, given.what, digest))
        target = _named(target, digest.hexdigest(), ".parquet")
        if not target.is_file():
            partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _schema(labels: Sequence[Any], classes: Any) -> pa.Schema:
    """Images, and labels of the kind that the first ones have; the names of a data set's classes as Hugging Face's."""
    some = next((label for label in labels if label is not None), None)
    fields = [pa.field("image", pa.binary())]
    if some is not None:
        fields.append(pa.field("label", pa.large_string() if isinstance(some, str) else pa.int64()))
    metadata = None
    if isinstance(some, int) and isinstance(classes, list) and all(isinstance(c, str) for c in classes):
        metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": classes}}}})}
    return pa.schema(fields, metadata)


def _table(
    rows: Sequence[tuple[Array | bytes, Any]],
    labels: Sequence[Any],
    schema: pa.Schema,
    begin: int,
    what: str,
    digest: Any,
) -> pa.Table:
    encoded = []
    for i, (image, _) in enumerate(rows):
        encoded.append(image if isinstance(image, bytes) else png(image, f"{what}[{begin + i}]"))
        if isinstance(image, bytes):
            digest.update(image)
        else:
            digest.update(f"{image.dtype} {image.shape}".encode())
            digest.update(np.ascontiguousarray(image).data)
    digest.update(json.dumps(list(labels)).encode())
    columns = {"image": encoded}
    if "label" in schema.names:
        columns["label"] = list(labels)
    elif any(label is not None for label in labels):
        raise InputError(
            f"the first {ROWS} samples of {what} have no labels and later ones have; give labels="
        )
    try:
        return pa.table(columns, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise InputError(f"the labels of {what} are numbers beside text; give one kind") from None


def png(image: Array, what: str) -> bytes:
    """(H, W) or (H, W, C) as a PNG, which keeps every pixel. Raises InputError for what no PNG holds."""
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    narrow = image.dtype == np.uint8
    if not (narrow or (image.dtype == np.uint16 and image.ndim == 2)):
        raise InputError(
            f"{what} is {image.dtype} of shape {image.shape}; in a list images are uint8, or grey ones uint16; give"
            " other ones as one array"
        )
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _named(target: Path, digest: str, ending: str) -> Path:
    return target.with_name(f"{target.name}-{digest[:16]}{ending}")


def cleared(folder: Path, keep: set[Path]) -> None:
    """What was written for a run that did not begin is removed, but for `keep`."""
    for path in set(folder.glob("*")) - keep:
        path.unlink(missing_ok=True)
    for place in (folder, folder.parent):
        with contextlib.suppress(OSError):  # it is not there, or holds something else
            place.rmdir()
