"""Folders of image files → samples, found without opening any: which files there are, and what says their class.

`data.labels` says it (`folder`, `none`, or a table of files); without it a guess is made, and the log says which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

import pyarrow as pa
from PIL import features

from raysurl.data import label_files, storage
from raysurl.data.dataset import Samples, Unreadable
from raysurl.data.labels import Classes, Labels, number
from raysurl.data.manifest import Listing
from raysurl.data.readers import FileReader
from raysurl.data.tree import FileEntry, Missing, Tree, shown
from raysurl.errors import InputError, printable
from raysurl.recipe import Data

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga"),
    *((".avif",) if features.check("avif") else ()),
)
TRAINING = ("train", "training")
TESTING = ("val", "valid", "validation", "test", "testing")
UNLABELLED = ("unlabeled", "unlabelled")
SPLITS = (*TRAINING, *TESTING, *UNLABELLED)
ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet's test set, beside a flat folder `images`

_PLATE = re.compile(r"(?i)plate[-_ ]?\w+")
_WELL = re.compile(r"[A-P](0[1-9]|1\d|2[0-4])")
_PARTITION = re.compile(r"(\w+)=(.*)")
_OTHER_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")


def folder(data: Data, path: str, key: str, known: Classes | None) -> Samples:
    """Images of a folder, flat or in folders of any depth. Raises InputError where there are none."""
    path = storage.absolute(path)
    if storage.kind(path, key) == "file":
        name = "parquet" if path.endswith(".parquet") else "npz" if path.endswith((".npz", ".npy")) else None
        hint = f"use data.name={name} for it" if name else "give the folder that holds the images"
        raise InputError(f"{key}={path} is a file, not a folder; {hint}")
    tree = storage.list_files(path, key)
    images = [entry for entry in tree.files if is_image(entry.path)]
    rest = len(tree.files) - len(images)
    images, of_test = without_test_files(data, key, images)
    lost = [entry for entry in tree.missing if not entry.folder and is_image(entry.path)]
    images = sorted([*images, *(FileEntry(entry.path, 0) for entry in lost)], key=lambda entry: entry.path)
    if not images:
        raise InputError(_nothing(path, key, tree))
    names = [entry.path for entry in images]
    labels, guess = _labels(data, path, names, known, key, {entry.path for entry in tree.files})
    left_out = f"{rest} files that are not images by their ending left out" if rest else ""
    samples = Samples(
        Listing.of_files(path, images), FileReader(path), missing=_folders_lost(path, names, tree.missing)
    ).with_note(left_out, tree.remark(), of_test, guess)
    return samples if labels is None else samples.labelled(labels)


def is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_ENDINGS)


def without_test_files(data: Data, key: str, entries: list[FileEntry]) -> tuple[list[FileEntry], str]:
    """Training files without those that the test set holds too, and a remark: what is held out must not be learned."""
    if key != "data.path" or data.eval_path is None or storage.is_uri(data.eval_path):
        return entries, ""
    root = storage.split_glob(storage.absolute(data.eval_path))[0]
    try:
        if storage.kind(root, "data.eval_path") == "file":
            held = {storage.identity(root, "")}
        else:
            held = {entry.key for entry in storage.list_files(root, "data.eval_path").files}
    except InputError:
        return entries, ""  # opening the test set will say it
    kept = [entry for entry in entries if entry.key is None or entry.key not in held]
    if len(kept) == len(entries):
        return entries, ""
    if not kept:
        return entries, "data.eval_path holds every training file: its accuracies say nothing of new images"
    return kept, f"{len(entries) - len(kept):,} files that data.eval_path holds too left out of training"


def _nothing(path: str, key: str, tree: Tree) -> str:
    lost = f"; {tree.missing[0].path}: {tree.missing[0].reason}" if tree.missing else ""
    return (
        f"{key}={path} holds no image files (of {len(tree.files)} files none ends in"
        f" {', '.join(IMAGE_ENDINGS[:6])} …{lost}); give a folder of images, flat or one folder per class"
    )


def _folders_lost(root: str, images: Sequence[str], missing: Sequence[Missing]) -> tuple[Unreadable, ...]:
    """What could not be opened and may hold images, each taken for as many as its neighbours hold."""
    found = []
    for entry in missing:
        if entry.folder or not (is_image(entry.path) or _OTHER_ENDING.search(entry.path)):
            above = entry.path.rpartition("/")[0]
            inside = [name for name in images if name.startswith(f"{above}/")] if above else images
            depth = above.count("/") + 1 if above else 0
            nested = [name.split("/")[depth] for name in inside if name.count("/") > depth]
            about = round(len(nested) / len(set(nested))) if nested else 1
            found.append(Unreadable(-1, storage.join(root, entry.path), entry.reason, max(about, 1)))
    return tuple(found)


# -------------------------------------------------------------------- labels


def _labels(
    data: Data, path: str, images: Sequence[str], known: Classes | None, key: str, files: set[str]
) -> tuple[Labels | None, str]:
    """The labels, and a phrase that says where they are from."""
    where = f"{key}={path}"
    choice = data.labels
    if choice == "none":
        return None, "no labels, as asked"
    if choice and choice.lower().endswith(label_files.ENDINGS):
        return label_files.of_table(choice, images, known)
    if choice not in (None, "folder"):
        raise InputError(
            f"data.labels={choice}: a folder of images has no columns; valid are folder, none, or a .csv file of"
            " names and labels"
        )
    if choice is None and ANNOTATIONS in files:
        return label_files.of_tiny_imagenet(path, ANNOTATIONS, images, known, where)
    tops = [name.split("/", 1)[0] if "/" in name else None for name in images]
    folders = sorted({top for top in tops if top is not None})
    if not folders:
        if choice == "folder":
            raise InputError(
                f"data.labels=folder: all images lie directly in {where}, in no folders that could be classes"
            )
        return None, ""
    if choice is None and known is None and (why := _no_classes(path, images, tops, folders, key)):
        return None, f"no labels: {why}; data.labels=folder takes the top folders for classes"
    values = [None if top is None or top.lower() in UNLABELLED else top for top in tops]
    labels = number([(where, pa.array(_partition_values(values), pa.large_string()))], known, where)
    return labels, _remark(images, tops, folders, len(labels.names or ()))


def _no_classes(
    path: str, images: Sequence[str], tops: Sequence[str | None], folders: Sequence[str], key: str
) -> str:
    """Why the top folders are taken for no classes; empty where they may be. InputError where they are splits."""
    lower = {top.lower() for top in folders}
    if None not in tops and lower <= {*SPLITS} and (len(folders) > 1 or lower & {*TRAINING}):
        raise InputError(_splits(path, folders, key))
    if None in tops:
        return f"images lie both directly in it ({printable(images[list(tops).index(None)])}) and in folders"
    if len(folders) == 1:
        inner = {name.split("/")[1] for name in images if name.count("/") > 1}
        hint = f" (of its {len(inner)} folders with data.path={path}/{folders[0]})" if len(inner) > 1 else ""
        return f"all images lie in one folder, {printable(folders[0])}, which tells nothing apart{hint}"
    inner = {name.split("/")[1] for name in images if name.count("/") > 1}
    if all(_PLATE.fullmatch(top) for top in folders):
        return f"the folders {shown(list(folders))} look like plates"
    if all(_WELL.fullmatch(top) for top in folders) or (inner and all(map(_WELL.fullmatch, inner))):
        return f"the folders {shown(sorted(inner) or list(folders))} look like wells of plates"
    return ""


def _splits(path: str, folders: Sequence[str], key: str) -> str:
    train = next((top for top in folders if top.lower() in TRAINING), None)
    test = next((top for name in TESTING for top in folders if top.lower() == name), None)
    give = f"give data.path={path}/{train or folders[0]}"
    if train and test:
        give += f" data.eval_path={path}/{test}"
    return (
        f"{key}={path} holds the splits {', '.join(folders)}, not classes; {give}, or data.labels=none to learn from"
        " all of them"
    )


def _partition_values(tops: Sequence[str | None]) -> list[str | None]:
    """The folders `label=a`, `label=b`, … are the classes a, b, …"""
    found = [None if top is None else _PARTITION.fullmatch(top) for top in tops]
    if any(match is None and top is not None for match, top in zip(found, tops, strict=True)):
        return list(tops)
    if len({match[1] for match in found if match}) != 1:
        return list(tops)
    return [None if match is None else unquote(match[2]) for match in found]


def _remark(images: Sequence[str], tops: Sequence[str | None], folders: Sequence[str], count: int) -> str:
    """Where the labels are from, and what is odd about them."""
    odd = []
    splits = [top for top in folders if top.lower() in (*TRAINING, *TESTING)]
    if splits:
        odd.append(f"{', '.join(splits)} look like splits")
    if unlabelled := [top for top in folders if top.lower() in UNLABELLED]:
        odd.append(f"images in {', '.join(unlabelled)} have none")
    if loose := sum(top is None for top in tops):
        odd.append(f"{loose:,} images outside of them have none")
    below: dict[str, set[str]] = {}
    for name, top in zip(images, tops, strict=True):
        if top is not None and name.count("/") > 1:
            below.setdefault(name.split("/")[1], set()).add(top)
    shared = sorted(name for name, above in below.items() if len(above) > 1)
    if shared and len(shared) > len(below) / 2:
        odd.append(f"the same folders ({shown(shared)}) lie in several of them, as wells do in plates")
    if len(folders) == 1:
        odd.append("one class tells nothing apart")
    more = f" ({'; '.join(odd)})" if odd else ""
    return f"labels: the {count} top folders{more}; data.labels=none takes none"
