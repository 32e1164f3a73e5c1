"""COCO's layout: ROOT/annotations/instances_train2017.json and ROOT/train2017/*.jpg, and the same of val2017.

An image shows several categories, so that its sample has tags and no label, see `Samples`. The objects, with boxes and
masks, are read for the detection protocol (raysurl.evaluate.detection).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysurl import plain
from raysurl.data import storage, tree
from raysurl.data.dataset import Samples
from raysurl.data.manifest import Listing
from raysurl.data.readers import FileReader
from raysurl.data.tree import FileEntry
from raysurl.errors import InputError, first_line
from raysurl.recipe import Data

YEARS = ("2014", "2017")


@dataclass(frozen=True)
class Instances:
    """What an annotation file says: `tree`, whole, as pycocotools takes it; `images` in the order of the file.

    `objects`: id of an image -> its annotations. `categories`: ids, ascending; `names` (C,) of them.
    """

    tree: dict[str, Any]
    images: tuple[dict[str, Any], ...]
    objects: dict[int, list[dict[str, Any]]]
    categories: tuple[int, ...]
    names: tuple[str, ...]

    def tags(self) -> NDArray[np.int8]:
        """(N, C): 1 where an object of the category is in the image, a crowd of them too."""
        at = {category: i for i, category in enumerate(self.categories)}
        found = np.zeros((len(self.images), len(at)), np.int8)
        for row, image in enumerate(self.images):
            for thing in self.objects.get(image["id"], ()):
                found[row, at[thing["category_id"]]] = 1
        return found


def open_coco(data: Data, split: Literal["train", "eval"]) -> Samples | None:
    """The samples of train2017 or val2017, all images of the annotation file; None where there is none of val.

    Raises InputError for an unknown year, a folder that is not COCO's, and annotations that cannot be read.
    """
    found = instances(data, split)
    if found is None:
        return None
    root, part = _root(data), _part(data, split)
    base = storage.join(root, part)
    entries = []
    for image in found.images:
        size, time = storage.stamp_of(base, image["file_name"])
        entries.append(FileEntry(image["file_name"], max(size, 0), time))
    listing = Listing.of_files(base, entries)
    return Samples(listing, FileReader(base), tags=found.tags(), tag_names=found.names)


def instances(data: Data, split: Literal["train", "eval"]) -> Instances | None:
    """The annotations of a split, parsed once for a process; raises as `open_coco`."""
    root, part = _root(data), _part(data, split)
    file = f"annotations/instances_{part}.json"
    size, time = storage.stamp_of(root, file)
    if size < 0:
        if split == "eval":
            return None
        raise InputError(
            f"data.name={data.name}: data.path={data.path} has no {file}; give the folder that holds it"
        )
    return _parsed(root, file, size, time)


def _root(data: Data) -> str:
    if (year := data.name.partition(":")[2]) not in YEARS:
        raise InputError(f"data.name={data.name}: there is no such year; choose one of {', '.join(YEARS)}")
    if data.path is None:
        raise InputError(
            f"data.name={data.name} needs data.path=, the folder that holds annotations and train{year}"
        )
    root = storage.absolute(data.path)
    storage.kind(root, "data.path")
    return root


def _part(data: Data, split: str) -> str:
    return {"train": "train", "eval": "val"}[split] + data.name.partition(":")[2]


@lru_cache(maxsize=2)
def _parsed(root: str, file: str, size: int, time: int) -> Instances:
    where = f"{root}/{file}"
    try:
        content = plain.mapping(storage.read_bytes(root, file))
    except OSError as error:
        raise InputError(f"{where} cannot be read: {tree.reason(error)}") from None
    except ValueError as error:
        raise InputError(f"{where} is not COCO's: {first_line(error)}") from None
    try:
        return _checked(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{where} is not COCO's: it needs images (id, file_name, height, width), categories (id, name) and"
            f" annotations (image_id, category_id, bbox, segmentation, area, iscrowd); {first_line(error)}"
        ) from None
    except ValueError as error:
        raise InputError(f"{where} is not COCO's: {first_line(error)}") from None


def _checked(content: dict[str, Any]) -> Instances:
    """Raises KeyError, TypeError or ValueError where something is not as COCO has it."""
    images = tuple(content["images"])
    known = {_whole(image["id"]) for image in images}
    for image in images:
        name = image["file_name"]
        if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/") or not name:
            raise ValueError(f"image {image['id']} is named {name!r}, which is no file of its folder")
        if min(_whole(image["height"]), _whole(image["width"])) < 1:
            raise ValueError(f"image {image['id']} has no pixels")
    if len(known) < len(images) or len({image["file_name"] for image in images}) < len(images):
        raise ValueError("an image is there twice")
    named = {_whole(category["id"]): str(category["name"]) for category in content["categories"]}
    objects: dict[int, list[dict[str, Any]]] = {}
    for thing in content["annotations"]:
        if thing["image_id"] not in known or thing["category_id"] not in named:
            raise ValueError(
                f"an annotation is of image {thing['image_id']} and category {thing['category_id']}"
            )
        x, y, w, h = map(float, thing["bbox"])
        if not np.isfinite([x, y, w, h]).all() or min(w, h) < 0:
            raise ValueError(f"an annotation of image {thing['image_id']} has the box {thing['bbox']}")
        if not isinstance(thing["segmentation"], list | dict) or thing.get("iscrowd", 0) not in (0, 1):
            raise ValueError(f"an annotation of image {thing['image_id']} has no mask")
        objects.setdefault(thing["image_id"], []).append(thing)
    order = tuple(sorted(named))
    return Instances(content, images, objects, order, tuple(named[c] for c in order))


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number")
    return value
