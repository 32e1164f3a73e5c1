"""A data set name or path → samples.

`open_samples` lists the data once and checks what can be checked without decoding it all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from raysurl.data import listings, planetoid, storage, torchvision_data
from raysurl.data.dataset import Samples, Unreadable
from raysurl.data.decode import Flatten
from raysurl.data.manifest import Listing
from raysurl.data.readers import ArrayReader, Digits, digits
from raysurl.errors import InputError
from raysurl.recipe import Data

__all__ = ["KINDS", "Samples", "Split", "Unreadable", "open_samples"]

Split = Literal["train", "eval"]
KINDS = ("digits", "torchvision:<class>", "folder", "parquet", "npz", "planetoid:<graph>")

_LIMIT = 0x6C696D6974  # keeps the choice of `data.limit` apart from other uses of the seed


def open_samples(data: Data, split: Split, seed: int) -> Samples | None:
    """List the samples of a split; None where the recipe names no labelled test set.

    `data.limit` takes a choice of the train split that depends on the seed alone. Raises InputError for
    anything that can be seen without decoding all: missing paths, empty folders, wrong columns.
    """
    samples = _open(data, split)
    if samples is None:
        return None
    if not len(samples):
        raise InputError(f"data.name={data.name} data.path={data.path}: the {split} split holds no samples")
    if split == "train" and data.limit is not None and data.limit < len(samples):
        bits = np.random.Philox(key=[seed, _LIMIT]).random_raw(len(samples))
        samples = samples.select(np.sort(np.argsort(bits, kind="stable")[: data.limit]))
    return samples if data.flatten is None else flattened(samples, data.flatten)


def flattened(samples: Samples, kind: str) -> Samples:
    """The images as vectors, each of as many values as the first that can be read."""
    loose = replace(samples, flatten=Flatten(kind))
    return replace(samples, flatten=Flatten(kind, loose.width()))


def _open(data: Data, split: Split) -> Samples | None:
    if data.name == "digits":
        return _digits_split(split)
    if data.name.startswith("torchvision:"):
        return torchvision_data.open_dataset(data, split)
    if data.name.startswith("planetoid:"):
        return _nodes(data, split)
    lists = {"folder": listings.folder, "parquet": listings.parquet, "npz": listings.npz}
    if data.name not in lists:
        raise InputError(f"data.name={data.name} is not known; choose one of {', '.join(KINDS)}")
    if data.path is None:
        raise InputError(f"data.name={data.name} needs data.path=, the file, folder or URI to read")
    if split == "train":
        return lists[data.name](data, data.path, "data.path", None)
    if data.eval_path is None:
        return None
    known = listings.class_names(data)
    return lists[data.name](data, data.eval_path, "data.eval_path", known)


def _nodes(data: Data, split: Split) -> Samples | None:
    """All nodes of a citation graph, whose public split says which are for what; there is no other test set."""
    if data.path is None:
        raise InputError(f"data.name={data.name} needs data.path=, the Planetoid root that holds <Name>/raw")
    if split == "eval":
        return None
    nodes = planetoid.Nodes(data.name.partition(":")[2], storage.absolute(data.path))
    if data.download:
        planetoid.fetch(nodes.name, nodes.root)
    known = planetoid.read(nodes.name, nodes.root)
    listing = Listing.of_rows(data.name, len(known.labels))
    return Samples(listing, ArrayReader(nodes), known.labels, split=known.split)


def _digits_split(split: Split) -> Samples:
    """A fixed stratified split: 1,437 for training, 360 for evaluation."""
    from sklearn.model_selection import train_test_split

    labels = digits()[1]
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    samples = Samples(
        Listing.of_rows("digits", len(labels)),
        ArrayReader(Digits()),
        labels,
        tuple(str(d) for d in range(10)),
    )
    return samples.select(np.sort(train if split == "train" else test).astype(np.int64))
