"""Tables of file names and labels beside a folder of images."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from raysurl.data import storage
from raysurl.data.dataset import Samples
from raysurl.data.labels import Classes, Labels, number
from raysurl.data.tree import reason
from raysurl.errors import InputError

ENDINGS = (".csv", ".tsv", ".txt")
NAME_COLUMNS = (
    "path",
    "file",
    "filename",
    "file_name",
    "image",
    "img",
    "image_path",
    "image_id",
    "name",
    "id",
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category", "y")


def of_tiny_imagenet(
    root: str, file: str, images: Sequence[str], known: Classes | None, where: str
) -> tuple[Labels, str]:
    """Tab-separated lines of a file name, its class, and more."""
    lines = [line.rstrip("\r") for line in _text(root, file, where).split("\n")]
    of_file = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    values = pa.array([of_file.get(name.rsplit("/", 1)[-1]) for name in images], pa.large_string())
    return number([(f"{where}/{file}", values)], known, where), f"labels: {file}"


def of_table(file: str, images: Sequence[str], known: Classes | None) -> tuple[Labels, str]:
    """A table with a column of file names and one of labels, with or without a line of headings.

    A name is a path below the folder, or a file name, with or without its ending, that only one image has. Raises
    InputError for a table that is none of that, that names no image, or gives one two labels.
    """
    where = f"data.labels={file}"
    rows = _rows(storage.absolute(file), where)
    index = _by_name(images)
    values: list[str | None] = [None] * len(images)
    strangers = 0
    for name, label in _pairs(rows, index, where):
        at = index.get(_plain(name))
        if at is None:
            strangers += 1
        elif values[at] not in (None, label):
            raise InputError(f"{where} gives {name} two labels, {values[at]} and {label}; give one")
        else:
            values[at] = label or None
    named = sum(value is not None for value in values)
    if not named:
        raise InputError(
            f"{where} names none of the images, the first of which is {images[0]}; give their names as in"
            " the folder"
        )
    text = pa.array(values, pa.large_string())
    try:
        column = text.cast(pa.int64())
    except pa.ArrowInvalid:
        column = text
    remarks = [f"labels: {file}"]
    if named < len(images):
        remarks.append(f"{len(images) - named:,} images are not in it and have none")
    if strangers:
        remarks.append(f"{strangers:,} of its rows name no image here")
    return number([(where, column)], known, where), ", ".join(remarks)


def few_labels(samples: Samples, file: str) -> Samples:
    """The samples, of which only those that a list names keep their labels: a name a line, as `of_table` takes them, or
    the position of a row where a file holds many samples. Raises InputError where a line names none."""
    where = f"data.labelled={file}"
    if samples.labels is None:
        raise InputError(f"{where} chooses among labels, and the data have none")
    listing = samples.listing
    names = [str(i) if listing.row[i] >= 0 else listing.path(i) for i in range(len(samples))]
    index, wanted = _by_name(names), _text(storage.absolute(file), "", where).splitlines()
    lines = [line for line in map(_plain, wanted) if line]
    strangers = [line for line in lines if line not in index]
    if strangers or not lines:
        first = f", as {strangers[0]}" if strangers else ""
        raise InputError(
            f"{where}: {len(strangers):,} of its {len(lines):,} lines name no sample{first}; give names as {names[0]}"
        )
    kept = np.full(len(samples), -1, np.int64)
    chosen = np.array([index[line] for line in lines])
    kept[chosen] = samples.labels[chosen]
    note = f"labels: of the {len(np.unique(chosen)):,} samples that {file} names alone"
    return replace(samples, labels=kept).with_note(note)


def _rows(path: str, where: str) -> list[list[str]]:
    text = _text(path, "", where)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise InputError(f"{where} is no table of text: {error}") from None


def _pairs(rows: list[list[str]], index: dict[str, int], where: str) -> list[tuple[str, str]]:
    """(name, label) of each row."""
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    names = [head.index(column) for column in NAME_COLUMNS if column in head]
    labels = [head.index(column) for column in LABEL_COLUMNS if column in head]
    if names and labels:
        at, to, body = names[0], labels[0], rows[1:]
    elif head and len(head) >= 2 and any(_plain(row[0]) in index for row in rows[:2]):
        at, to, body = 0, 1, rows if _plain(rows[0][0]) in index else rows[1:]
    else:
        there = ", ".join(head[:6]) or "nothing"
        raise InputError(f"{where} begins with {there}; it must have the columns path and label")
    if short := next((row for row in body if len(row) <= max(at, to)), None):
        raise InputError(f"{where}: the row {','.join(short)} has no label; give each image one")
    return [(row[at], row[to].strip()) for row in body]


def _by_name(images: Sequence[str]) -> dict[str, int]:
    """Every name by which only one image can be meant → its place."""
    found: dict[str, int] = {}
    files = [image.rsplit("/", 1)[-1] for image in images]
    for names in (map(_stem, files), files, map(_stem, images), images):
        held = list(names)
        often = Counter(held)
        found.update({name: at for at, name in enumerate(held) if often[name] == 1})
    return found


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _plain(name: str) -> str:
    return name.strip().replace("\\", "/").removeprefix("./") if "\\x" not in name else name.strip()


def _text(root: str, file: str, where: str) -> str:
    try:
        return storage.read_text(root, file)
    except OSError as error:
        raise InputError(f"{where}: {file or root} cannot be opened: {reason(error)}") from None
