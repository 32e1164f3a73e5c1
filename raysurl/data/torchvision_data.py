"""Any torchvision data set by name and root: `torchvision:CIFAR10`.

Which split is which follows from the class's own arguments (`train=`, `split=`), so that no table of data
sets is kept here; STL10's training split takes its unlabelled images in, and a class with a test split and a validation
split trains on the latter too, as papers do on FGVC Aircraft, DTD and Flowers. Nothing is downloaded unless asked.
"""

from __future__ import annotations

import difflib
import inspect
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raysurl.data import storage, tree
from raysurl.data.dataset import Samples
from raysurl.data.decode import Array, DecodeError, pixels_of_pil
from raysurl.data.listings import check_array
from raysurl.data.manifest import Listing
from raysurl.data.planetoid import TRAIN, VALIDATION
from raysurl.data.readers import ArrayReader, Encoded, FileReader, Reader, Stamp
from raysurl.data.tree import FileEntry
from raysurl.errors import InputError
from raysurl.recipe import Data

_SPLITS = {
    "train": ("train+unlabeled", "trainval", "train", "balanced"),
    "eval": ("test", "val", "valid", "validation"),
}
_VALIDATION = _SPLITS["eval"][1:]


@dataclass(frozen=True)
class Dataset:
    """A torchvision data set that any process can open again: class, its arguments, and a split that comes behind."""

    name: str
    arguments: tuple[tuple[str, Any], ...]
    behind: str | None = None

    def open(self) -> Any:
        return _open_once(self)

    def load(self) -> Array:
        """All images as one array, for data sets that keep them so."""
        return np.asarray(self.open().data)


@lru_cache(maxsize=2)
def _open_once(dataset: Dataset) -> Any:
    import torchvision.datasets  # slow to import, and most processes never need it

    opened = getattr(torchvision.datasets, dataset.name)
    first = opened(**dict(dataset.arguments))
    if dataset.behind is None:
        return first
    return Joined(first, opened(**{**dict(dataset.arguments), "split": dataset.behind}))


class Joined:
    """Two splits as one: the items of the first, then those of the other."""

    def __init__(self, first: Any, other: Any) -> None:
        self.first, self.other = first, other
        self.classes = getattr(first, "classes", None)

    def __len__(self) -> int:
        return len(self.first) + len(self.other)

    def __getitem__(self, row: int) -> Any:
        return self.first[row] if row < len(self.first) else self.other[row - len(self.first)]


@dataclass(frozen=True)
class ItemReader:
    """Samples of a data set that offers neither an array nor files: its items, one by one."""

    dataset: Dataset
    in_memory: ClassVar[bool] = False
    grouped: ClassVar[bool] = False

    def read(
        self, path: str, group: int, rows: NDArray[np.int64], stamp: Stamp | None = None
    ) -> list[Encoded]:
        items = self.dataset.open()
        result: list[Encoded] = []
        for row in rows.tolist():
            try:
                result.append(pixels_of_pil(items[row][0]))
            except Exception as error:  # whatever the data set raises for a bad item
                result.append(error if isinstance(error, DecodeError) else DecodeError(str(error)))
        return result


def open_dataset(data: Data, split: Literal["train", "eval"]) -> Samples | None:
    """The samples of a split; None where the class knows no test split.

    Raises InputError for an unknown class (the nearest named), a missing root, or a set that is not there.
    """
    cls = _class(data.name.partition(":")[2])
    dataset, items = _open_split(cls, data, split)
    if items is None:
        return None
    where = f"torchvision:{dataset.name}"
    labels, names = _labels(items), _names(items)
    reader: Reader
    files = _files(items)
    if files is not None:
        root = str(items.root)
        prefix = f"{storage.absolute(root).rstrip('/')}/"
        entries = [_entry(prefix, storage.absolute(str(path))) for path in files]
        listing, reader = Listing.of_files(prefix.rstrip("/"), entries), FileReader(prefix.rstrip("/"))
    elif hasattr(items, "data") and hasattr(items.data, "shape"):
        array = np.ascontiguousarray(items.data)
        check_array(array, where)
        stamp = (
            array.nbytes,
            zlib.crc32(array.data) + 1,
        )  # which files it is from only the class knows
        listing, reader = Listing.of_rows(where, len(array), stamp), ArrayReader(dataset)
    elif isinstance(items[0], tuple) and isinstance(items[0][0], Image.Image):
        listing, reader = Listing.of_rows(where, len(items)), ItemReader(dataset)
    else:
        raise InputError(f"data.name={data.name} does not hold images one by one, so it cannot be trained on")
    if labels is not None and len(labels) != len(listing):
        labels = None
    split_of = None
    if isinstance(items, Joined):
        counts = [len(items.first), len(items.other)]
        split_of = np.repeat(np.array([TRAIN, VALIDATION], np.uint8), counts)
    return Samples(listing, reader, labels, names, split=split_of)


def _entry(prefix: str, path: str) -> FileEntry:
    name = tree.text_of(path.removeprefix(prefix))
    size, time = storage.stamp_of(prefix.rstrip("/"), name)
    return FileEntry(name, max(size, 0), time)


def _class(name: str) -> Any:
    import torchvision.datasets

    classes = {
        n: c
        for n, c in vars(torchvision.datasets).items()
        if inspect.isclass(c) and issubclass(c, torchvision.datasets.VisionDataset) and n != "VisionDataset"
    }
    if name in classes:
        return classes[name]
    by_lower = {n.lower(): n for n in classes}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)
    raise InputError(
        f"torchvision has no data set {name!r}; did you mean data.name=torchvision:{by_lower[near[0]]}?"
    )


def _open_split(cls: Any, data: Data, split: Literal["train", "eval"]) -> tuple[Dataset, Any]:
    """The data set and its opened form; None for a test split that the class does not have."""
    parameters = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {}
    if "root" in parameters:
        if data.path is None:
            raise InputError(f"data.name={data.name} needs data.path=, the root folder that holds it")
        arguments["root"] = storage.absolute(data.path)
        if not data.download:
            storage.kind(arguments["root"], "data.path")  # some classes would create a missing folder
    if "download" in parameters:
        arguments["download"] = data.download  # one class downloads by default
    if "train" in parameters:
        arguments["train"] = split == "train"
    elif "split" not in parameters and split == "eval":
        return Dataset(cls.__name__, ()), None
    choices = _SPLITS[split] if "split" in parameters else (None,)
    if "train" in parameters and "split" in parameters:
        choices = _SPLITS["train"]
    for choice in choices:
        dataset = Dataset(cls.__name__, tuple({**arguments, **({"split": choice} if choice else {})}.items()))
        try:
            items = dataset.open()
            return _with_validation(dataset, items) if choice == "train" else (dataset, items)
        except ValueError as error:
            if "split" not in str(error):
                raise _missing(data, error) from None
        except (RuntimeError, OSError, ImportError) as error:
            raise _missing(data, error) from None
    return Dataset(cls.__name__, ()), None


def _with_validation(dataset: Dataset, items: Any) -> tuple[Dataset, Any]:
    """A training split with the validation split behind it, where there is a test split beside these two."""
    arguments = dict(dataset.arguments)

    def has(split: str) -> bool:
        try:
            replace(dataset, arguments=tuple({**arguments, "split": split}.items())).open()
        except Exception:  # no such split, or its files are not there: each class says so in its own way
            return False
        return True

    held = next((split for split in _VALIDATION if has(split)), None)
    if held is None or not has("test") or _files(items) is not None or hasattr(items, "data"):
        return dataset, items
    joined = replace(dataset, behind=held)
    return joined, joined.open()


def _missing(data: Data, error: Exception) -> InputError:
    if isinstance(error, ImportError):
        return InputError(f"data.name={data.name} needs a package that is not installed: {error}")
    reason = " ".join(str(error).split())[:160]
    return InputError(
        f"data.name={data.name} cannot be read from data.path={data.path} ({reason}); give the folder that"
        " holds it, or say data.download=true"
    )


def _files(items: Any) -> list[str] | None:
    pairs = getattr(items, "samples", None)
    if not isinstance(pairs, list) or not pairs or not isinstance(pairs[0], tuple):
        return None
    return [path for path, _ in pairs] if isinstance(pairs[0][0], str) else None


def _labels(items: Any) -> NDArray[np.int64] | None:
    if isinstance(items, Joined):
        parts = [_labels(items.first), _labels(items.other)]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    for name in ("targets", "labels", "_labels", "y"):
        values = getattr(items, name, None)
        if values is None:
            continue
        array = np.asarray(values)
        if array.ndim == 1 and array.dtype.kind in "iub":
            return array.astype(np.int64)
    return _of_pairs(items)


def _of_pairs(items: Any) -> NDArray[np.int64] | None:
    """Labels of data sets that keep a list of (image, label), in either order; a label is the one whole number."""
    for name in ("_samples", "index", "_flat_character_images"):
        pairs = getattr(items, name, None)
        if not isinstance(pairs, list) or not pairs or not isinstance(pairs[0], tuple):
            continue
        columns = [np.asarray(column) for column in zip(*pairs, strict=True) if np.ndim(column[0]) == 0]
        whole = [column for column in columns if column.ndim == 1 and column.dtype.kind in "iu"]
        if len(whole) == 1:
            return whole[0].astype(np.int64)
    return None


def _names(items: Any) -> tuple[str, ...] | None:
    classes = getattr(items, "classes", None)
    if not isinstance(classes, list | tuple):
        return None
    return tuple(c if isinstance(c, str) else "/".join(map(str, c)) for c in classes)
