"""Any torchvision data set by name and root: `torchvision:CIFAR10`.

Which split is which follows from the class's own arguments (`train=`, `split=`), so that no table of data
sets is kept here; STL10's training split takes its unlabelled images in. Nothing is downloaded unless asked.
"""

from __future__ import annotations

import difflib
import inspect
import zlib
from dataclasses import dataclass
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
from raysurl.data.tree import Entry
from raysurl.errors import InputError
from raysurl.recipe import Data

_SPLITS = {
    "train": ("train+unlabeled", "train", "trainval", "balanced"),
    "eval": ("test", "val", "valid", "validation"),
    "validation": ("val", "valid", "validation"),
}


@dataclass(frozen=True)
class Dataset:
    """A torchvision data set that any process can open again: class, and its arguments."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    def open(self) -> Any:
        return _open_once(self)

    def load(self) -> Array:
        """All images as one array, for data sets that keep them so."""
        return np.asarray(self.open().data)


@lru_cache(maxsize=2)
def _open_once(dataset: Dataset) -> Any:
    import torchvision.datasets  # slow to import, and most processes never need it

    return getattr(torchvision.datasets, dataset.name)(**dict(dataset.arguments))


@dataclass(frozen=True)
class ItemReader:
    """Samples of a data set that offers neither an array nor files: its items, one by one."""

    dataset: Dataset | Joined
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


@dataclass(frozen=True)
class Joined:
    """Two splits of a data set, one after the other."""

    parts: tuple[Dataset, Dataset]

    def open(self) -> Any:
        from torch.utils.data import ConcatDataset

        return ConcatDataset([part.open() for part in self.parts])


def open_dataset(data: Data, split: Literal["train", "eval"]) -> Samples | None:
    """The samples of a split; None where the class knows no test split. With `data.validation` the training split has
    the class's own validation split behind it, and says so.

    Raises InputError for an unknown class (the nearest named), a missing root, or a set that is not there.
    """
    cls = _class(data.name.partition(":")[2])
    dataset, items = _open_split(cls, data, split)
    if items is None:
        return None
    if split == "train" and data.validation:
        held_out, more = _open_split(cls, data, "validation")
        if more is not None:
            return _joined(dataset, items, held_out, more)
    return _samples(dataset, items, data)


def _joined(dataset: Dataset, items: Any, held_out: Dataset, more: Any) -> Samples:
    where, labels = f"torchvision:{dataset.name}", [_labels(items), _labels(more)]
    counts = [len(items), len(more)]
    listing = Listing.of_rows(f"{where} with its validation split", sum(counts))
    known = None if labels[0] is None or labels[1] is None else np.concatenate([labels[0], labels[1]])
    split = np.repeat(np.array([TRAIN, VALIDATION], np.uint8), counts)
    return Samples(listing, ItemReader(Joined((dataset, held_out))), known, _names(items), split=split)


def _samples(dataset: Dataset, items: Any, data: Data) -> Samples:
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
    return Samples(listing, reader, labels, names)


def _entry(prefix: str, path: str) -> Entry:
    name = tree.text_of(path.removeprefix(prefix))
    size, time = storage.stamp_of(prefix.rstrip("/"), name)
    return Entry(name, max(size, 0), time)


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


def _open_split(cls: Any, data: Data, split: Literal["train", "eval", "validation"]) -> tuple[Dataset, Any]:
    """The data set and its opened form; None for a split that the class does not have. Its validation split is none
    where its training split holds it, or where it is the only test split."""
    if split == "validation":
        (train, _), (test, _) = (_open_split(cls, data, other) for other in ("train", "eval"))
        taken = [dict(other.arguments).get("split") for other in (train, test)]
        if taken[0] != "train" or taken[1] != "test":
            return Dataset(cls.__name__, ()), None
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
    elif "split" not in parameters and split != "train":
        return Dataset(cls.__name__, ()), None
    choices = _SPLITS[split] if "split" in parameters else (None,)
    if "train" in parameters and "split" in parameters:
        choices = _SPLITS["train"]
    for choice in choices:
        dataset = Dataset(cls.__name__, tuple({**arguments, **({"split": choice} if choice else {})}.items()))
        try:
            return dataset, dataset.open()
        except ValueError as error:
            if "split" not in str(error):
                raise _missing(data, error) from None
        except (RuntimeError, OSError, ImportError) as error:
            raise _missing(data, error) from None
    return Dataset(cls.__name__, ()), None


def _missing(data: Data, error: Exception) -> InputError:
    if isinstance(error, ImportError):
        return InputError(f"data.name={data.name} needs a package that is not installed: {error}")
    reason = " ".join(str(error).split())[:160]
    return InputError(
        f"data.name={data.name} cannot be read from data.path={data.path} ({reason}); give the folder that"
        " holds it, or say data.download=true"
    )


def _files(items: Any) -> list[str] | None:
    pairs = getattr(items, "samples", getattr(items, "_samples", None))
    if not isinstance(pairs, list) or not pairs or not isinstance(pairs[0], tuple):
        return None
    return [path for path, _ in pairs] if isinstance(pairs[0][0], str) else None


def _labels(items: Any) -> NDArray[np.int64] | None:
    for name in ("targets", "labels", "_labels", "y"):
        values = getattr(items, name, None)
        if values is None:
            continue
        array = np.asarray(values)
        if array.ndim == 1 and array.dtype.kind in "iub":
            return array.astype(np.int64)
    pairs = getattr(items, "_samples", None)  # of StanfordCars: path and class
    if isinstance(pairs, list) and pairs and isinstance(pairs[0], tuple) and len(pairs[0]) == 2:
        array = np.asarray([label for _, label in pairs])
        return array.astype(np.int64) if array.dtype.kind in "iu" else None
    return None


def _names(items: Any) -> tuple[str, ...] | None:
    classes = getattr(items, "classes", None)
    if not isinstance(classes, list | tuple):
        return None
    return tuple(c if isinstance(c, str) else "/".join(map(str, c)) for c in classes)
