"""PASCAL VOC in torchvision's layout: ROOT/VOCdevkit/VOC2007/{ImageSets/Main, JPEGImages, Annotations}.

An image shows several classes, so that its sample has tags and no label, see `Samples`: 1 for a class that is there,
−1 where all its objects are marked as difficult, which VOC's own evaluation leaves out, and 0 for one that is not.
2007 trains on trainval, of which `val` is the validation split, and is tested on test. The test annotations of later
years are not public: they train on train and are tested on val.
"""

from __future__ import annotations

from typing import Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from raysurl.data import storage, tree
from raysurl.data.dataset import Samples
from raysurl.data.manifest import Listing
from raysurl.data.planetoid import TRAIN, VALIDATION
from raysurl.data.readers import FileReader
from raysurl.data.tree import FileEntry
from raysurl.errors import InputError, first_line
from raysurl.recipe import Data

YEARS = ("2007", "2008", "2009", "2010", "2011", "2012")
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
PRESENT, ABSENT, DIFFICULT = 1, 0, -1


def open_voc(data: Data, split: Literal["train", "eval"]) -> Samples | None:
    """The samples of a split; None for the test split of 2007 where its list is not there.

    Raises InputError for an unknown year, a folder that is not VOC's, and annotations that cannot be read.
    """
    year = data.name.partition(":")[2]
    if year not in YEARS:
        raise InputError(f"data.name={data.name}: there is no such year; choose one of {', '.join(YEARS)}")
    if data.path is None:
        raise InputError(f"data.name={data.name} needs data.path=, the folder that holds VOCdevkit/VOC{year}")
    root = storage.absolute(data.path)
    if data.download:
        _download(root, year, split)
    storage.kind(root, "data.path")
    base = storage.join(root, f"VOCdevkit/VOC{year}")
    if split == "eval":
        names = _names(base, "test" if year == "2007" else "val")
        return None if names is None else _samples(data, base, names)
    if year == "2007":
        names, held = _names(base, "trainval"), set(_names(base, "val") or ())
    else:
        names, held = _names(base, "train"), set()
    if names is None:
        raise InputError(
            f"data.name={data.name}: data.path={data.path} has no VOCdevkit/VOC{year}/ImageSets/Main/"
            f"{'trainval' if year == '2007' else 'train'}.txt; give the folder that holds it, or say data.download=true"
        )
    return _samples(data, base, names, held)


def _samples(data: Data, base: str, names: list[str], held: set[str] | None = None) -> Samples:
    entries = []
    for name in names:
        path = f"JPEGImages/{name}.jpg"
        size, time = storage.stamp_of(base, path)
        entries.append(FileEntry(path, max(size, 0), time))
    tags = (
        np.stack([_tags(data, base, name) for name in names])
        if names
        else np.zeros((0, len(CLASSES)), np.int8)
    )
    split = np.array([VALIDATION if name in held else TRAIN for name in names], np.uint8) if held else None
    listing = Listing.of_files(base, entries)
    return Samples(listing, FileReader(base), split=split, tags=tags, tag_names=CLASSES)


def _names(base: str, part: str) -> list[str] | None:
    """The images of ImageSets/Main/PART.txt; None where it is not there."""
    try:
        lines = storage.read_text(base, f"ImageSets/Main/{part}.txt").split("\n")
    except OSError:
        return None
    names = [line.split()[0] for line in lines if line.strip()]
    if wrong := next((name for name in names if "/" in name or name.startswith(".")), None):
        raise InputError(
            f"{base}/ImageSets/Main/{part}.txt names {wrong}, which is not an image of JPEGImages"
        )
    if len(set(names)) < len(names):
        raise InputError(f"{base}/ImageSets/Main/{part}.txt names an image twice")
    return names


def _tags(data: Data, base: str, name: str) -> NDArray[np.int8]:
    """(C,) of one image."""
    where = f"data.name={data.name}: {base}/Annotations/{name}.xml"
    try:
        return tags_of(storage.read_bytes(base, f"Annotations/{name}.xml"))
    except OSError as error:
        raise InputError(f"{where} cannot be read: {tree.reason(error)}") from None
    except (ElementTree.ParseError, LookupError, RecursionError) as error:
        raise InputError(f"{where} is no XML: {first_line(error)}") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def tags_of(annotation: bytes) -> NDArray[np.int8]:
    """(C,) of an annotation file. Raises ParseError, LookupError, and ValueError for what VOC does not have."""
    tags = np.full(len(CLASSES), ABSENT, np.int8)
    for found in ElementTree.fromstring(annotation).findall("object"):
        kind, difficult = (found.findtext("name") or "").strip(), (found.findtext("difficult") or "0").strip()
        if kind not in CLASSES or difficult not in ("0", "1"):
            raise ValueError(
                f"an object of class {kind!r} and difficult={difficult!r}; VOC's classes are {', '.join(CLASSES)}, and"
                " difficult is 0 or 1"
            )
        at = CLASSES.index(kind)
        tags[at] = PRESENT if difficult == "0" or tags[at] == PRESENT else DIFFICULT
    return tags


def _download(root: str, year: str, split: str) -> None:
    """Through torchvision, which checks what it fetches."""
    from torchvision.datasets import VOCDetection  # slow to import, and only needed here

    part = {"train": "trainval" if year == "2007" else "train", "eval": "test" if year == "2007" else "val"}[
        split
    ]
    try:
        VOCDetection(root, year=year, image_set=part, download=True)
    except (RuntimeError, OSError) as error:
        raise InputError(f"data.name=voc:{year} cannot be downloaded: {first_line(error)}") from None
