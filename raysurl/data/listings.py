"""NumPy arrays → samples, and the checks that every array of samples must pass. Folders and Parquet files: see
raysurl.data.folders and raysurl.data.tables.

Each such function takes the recipe's data section, the path to list, the recipe key that named it (for messages),
and, for a test set, the classes of the training set, so that a label means the same class in both.
"""

from __future__ import annotations

from typing import Any

from raysurl.data import archives, matrices, storage, tables
from raysurl.data.dataset import Samples
from raysurl.data.labels import Classes, number
from raysurl.data.manifest import Listing
from raysurl.data.readers import ArrayReader, NumpyFile, load_once
from raysurl.errors import InputError
from raysurl.recipe import Data

_ARRAY_NAMES = ("images", "image", "x", "X", "data")
_LABEL_NAMES = ("labels", "label", "y", "Y", "targets")


def npz(data: Data, path: str, key: str, known: Classes | None) -> Samples:
    """A .npy file or an .npz archive: images of integers (N,H,W), (N,H,W,C), (N,C,H,W), or vectors (N,D).

    In an archive the array is the one named images, x or data, or the only one with two axes or more; labels
    or y are its labels.
    """
    path = storage.absolute(path)
    if storage.kind(path, key) == "folder":
        raise InputError(f"{key}={path} is a folder; data.name=npz reads one .npy or .npz file")
    where = f"{key}={path}"
    heads = archives.heads(path, where)
    shapes = {name: head.shape for name, head in heads.items() if name is not None}
    member = None if None in heads else _array_name(shapes, where)
    check_array(heads[member], where)
    of_labels = _label_name(data, heads, where)
    archives.check_size(heads, [member, *([] if of_labels is None else [of_labels])], where)
    origin = NumpyFile(path, member, storage.stamp(path))
    count = heads[member].shape[0]
    if len(heads[member].shape) == 2:
        matrices.check_finite(load_once(origin), where)
    samples = Samples(Listing.of_rows(path, count, origin.stamp), ArrayReader(origin))
    if of_labels is None:
        return samples
    labels = archives.read(path, of_labels, where)
    if labels.size != count:
        raise InputError(f"{where} holds {count} samples and {labels.size} labels; give one label each")
    return samples.labelled(number([(where, labels.reshape(-1))], known, where))


def _label_name(data: Data, heads: dict[str | None, archives.Head], where: str) -> str | None:
    """The array of the labels; None where there is none, or none is wanted."""
    if data.labels is None:
        return next((name for name in _LABEL_NAMES if name in heads), None)
    column = tables.label_column(data)
    if column is not None and column not in heads:
        raise InputError(
            f"{where} has no array {column!r}; set data.labels to one of {', '.join(map(str, heads))}, or to none"
        )
    return column


def _array_name(shapes: dict[str, tuple[int, ...]], where: str) -> str:
    named = [name for name in _ARRAY_NAMES if name in shapes]
    wide = [name for name, shape in shapes.items() if len(shape) >= 2 and name not in _LABEL_NAMES]
    if named or len(wide) == 1:
        return (named or wide)[0]
    there = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
    raise InputError(f"{where} holds {there}; name its images array images, x or data")


NO_STRIP = 8  # pixels: images of 1, 3 or 4 columns and as many rows are one image, its channels last


def check_array(array: Any, where: str) -> None:
    """InputError unless the array (or its head) holds images or vectors, one per row."""
    valid = "images of integers (N,H,W), (N,H,W,C), (N,C,H,W) with 1, 3 or 4 channels, or number vectors (N,D), D ≥ 1"
    shape, kind = array.shape, array.dtype.kind
    if len(shape) == 3 and shape[2] in (1, 3, 4) and shape[1] >= NO_STRIP:
        raise InputError(f"{where} of shape {shape} is one image (H,W,C); give several, (N,H,W,C)")
    images = kind in "uib" and (
        len(shape) == 3 or (len(shape) == 4 and (shape[3] in (1, 3, 4) or shape[1] in (1, 3, 4)))
    )
    if not (images or (len(shape) == 2 and kind in "uif")) or not all(shape[1:]):
        raise InputError(f"{where} holds {array.dtype} of shape {shape}; valid are {valid}")
