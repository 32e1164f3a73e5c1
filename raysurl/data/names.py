"""A data set name or path → samples.

`open_samples` lists the data once and checks what can be checked without decoding it all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, overload

import numpy as np

from raysurl import plugins, streams
from raysurl.data import coco, folders, listings, planetoid, storage, tables, torchvision_data, voc
from raysurl.data.dataset import Samples, Unreadable
from raysurl.data.decode import Flatten
from raysurl.data.depth import FEW, Depth
from raysurl.data.label_files import few_labels
from raysurl.data.labels import Classes
from raysurl.data.manifest import Listing
from raysurl.data.plugged import open_plugged
from raysurl.data.readers import ArrayReader, Digits, digits
from raysurl.data.residency import check_unreadable
from raysurl.errors import InputError
from raysurl.recipe import Data

__all__ = ["KINDS", "Samples", "Split", "Unreadable", "open_samples"]

Split = Literal["train", "eval"]
_CUT = f"up to {FEW:.0%} of an image outside is cut to its ends, an image with more is left out"
KINDS = {  # data.name -> what it reads
    "digits": "8×8 handwritten digits that come with scikit-learn",
    "folder": "a folder of images in data.path, flat or one folder per class",
    "parquet": "Parquet files with encoded images, or lists of numbers, in data.path (a file, folder, glob or URI)",
    "npz": ".npy or .npz arrays in data.path",
    "torchvision:<class>": "a data set of torchvision, CIFAR10 for example, with data.path as its root",
    "planetoid:<graph>": "a citation graph, Cora, CiteSeer or PubMed, with data.path as its root",
    "voc:<year>": "PASCAL VOC, 2007 for example, with data.path as the folder that holds VOCdevkit",
    "coco:<year>": "COCO, 2017 for example, with data.path as the folder that holds annotations and images",
}


@overload
def open_samples(data: Data, split: Literal["train"], seed: int, depth: Depth | None = None) -> Samples: ...
@overload
def open_samples(data: Data, split: Split, seed: int, depth: Depth | None = None) -> Samples | None: ...
def open_samples(data: Data, split: Split, seed: int, depth: Depth | None = None) -> Samples | None:
    """List the samples of a split; None where the recipe names no labelled test set.

    `data.limit` takes a choice of the train split that depends on the seed alone. `depth`: the range of wide pixels
    with which the network that is to see them was trained. Raises InputError for
    anything that can be seen without decoding all: missing paths, empty folders, wrong columns.
    """
    samples = _open(data, split)
    if samples is None:
        return None
    if not len(samples):
        raise InputError(f"data.name={data.name} data.path={data.path}: the {split} split holds no samples")
    check_unreadable(samples.missing, len(samples), data.max_unreadable)
    samples = measured(samples, data, split, depth)
    if split == "train" and data.labelled is not None:
        samples = few_labels(samples, data.labelled)
    if split == "train" and data.limit is not None and data.limit < len(samples):
        bits = streams.raw_bits(len(samples), seed, "limit")
        samples = samples.select(np.sort(np.argsort(bits, kind="stable")[: data.limit]))
    if split == "train" and data.per_class is not None:
        samples = divided(samples, data, seed)
    return samples if data.flatten is None else flattened(samples, data.flatten)


def divided(samples: Samples, data: Data, seed: int) -> Samples:
    """`data.per_class` samples of each class for training and the others for the test, a seeded draw."""
    labels, count = samples.labels, data.per_class
    if labels is None or _open(data, "eval") is not None:
        reason = "has no labels" if labels is None else "has a test set of its own"
        raise InputError(f"data.per_class={count}: {data.name} {reason}; leave it out")
    keys, split = streams.raw_bits(len(labels), seed, "per class"), np.zeros(len(labels), np.uint8)
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(keys[members], kind="stable")]
        split[members[:count]], split[members[count:]] = planetoid.TRAIN, planetoid.TEST
    return replace(samples, split=split).with_note(f"{count} samples of each class train, all others test")


def measured(samples: Samples, data: Data, split: Split, known: Depth | None = None) -> Samples:
    """The samples with the range of their pixels, where some are wider than a byte.

    It is what `data.bits` says, else `known`, that of the run whose network sees them (whose recipe may have the bits),
    else that of the training data.
    """
    if not samples.has_wide():
        return samples
    said = None if data.bits is None else Depth(0, data.bits)
    if said is not None and (known is None or said.tree() != known.tree()):
        return ranged(samples, said, "data.bits", _CUT)
    found = samples.extent()
    if known is not None:
        # what the network cannot see is cut, for another scale would change all that it can
        return ranged(samples, replace(known, beyond=1.0), "the run's training data", found.outside(known))
    training = None if split == "train" else _open(data, "train")
    depth = training and training.extent().depth
    if depth:
        beyond = found.outside(depth)
        return ranged(samples, depth, "the training data", beyond, beyond and _CUT)
    all_of_them = found.samples == len(samples)
    few = " of all" if all_of_them else f" in {found.samples:,} of {len(samples):,} samples"
    by = f"the largest{few}, which data.bits= overrules"
    return ranged(samples, found.depth or Depth(0, 8), by, found.stray(), "" if all_of_them else _CUT)


def ranged(samples: Samples, depth: Depth, by: str, *remarks: str) -> Samples:
    """The samples with a range, and the sentence that says why it is this one."""
    said = f"pixels wider than a byte lie in {depth}, by {by}"
    return replace(samples, depth=depth, depth_note="; ".join(filter(None, [said, *remarks])))


def flattened(samples: Samples, kind: str) -> Samples:
    """The images as vectors, each of as many values as the first that can be read."""
    loose = replace(samples, flatten=Flatten(kind))
    return replace(samples, flatten=Flatten(kind, loose.width()))


def _open(data: Data, split: Split) -> Samples | None:
    listed = {"folder": folders.folder, "parquet": tables.parquet, "npz": listings.npz}
    if data.options and built_in(data.name):
        raise InputError(
            f"data.options are of sources from outside the package, and data.name={data.name} is built in; leave"
            " them out"
        )
    if data.name in listed:
        return _listed(listed[data.name], data, split)
    if data.labels not in (None, "none"):
        raise InputError(
            f"data.labels={data.labels}: data.name={data.name} has its own labels; valid is none"
        )
    samples = _of_its_own(data, split)
    if samples is None or data.labels != "none":
        return samples
    return replace(samples, labels=None, tags=None)


def _of_its_own(data: Data, split: Split) -> Samples | None:
    """Data sets that know their labels and splits."""
    if data.name == "digits":
        return _digits_split(split)
    if data.name.startswith("torchvision:"):
        return torchvision_data.open_dataset(data, split)
    if data.name.startswith("planetoid:"):
        return _nodes(data, split)
    if data.name.startswith("voc:"):
        return voc.open_voc(data, split)
    if data.name.startswith("coco:"):
        return coco.open_coco(data, split)
    if plugins.offered("data", data.name):
        return open_plugged(data, split)
    known = ", ".join([*KINDS, *plugins.names("data")])
    raise InputError(
        f"data.name={data.name} is not known; choose one of {known}{plugins.near('data', data.name, KINDS)}"
    )


def built_in(name: str) -> bool:
    """Whether a name is of the package's own sources."""
    return name in KINDS or f"{name.partition(':')[0]}:" in {kind.partition("<")[0] for kind in KINDS}


def _listed(
    listing: Callable[[Data, str, str, Classes | None], Samples], data: Data, split: Split
) -> Samples | None:
    if data.path is None:
        raise InputError(f"data.name={data.name} needs data.path=, the file, folder or URI to read")
    if split == "eval" and data.eval_path is None:
        return None
    training = listing(data, data.path, "data.path", None)
    if split == "train":
        return training
    assert data.eval_path is not None
    return listing(data, data.eval_path, "data.eval_path", training.classes())


def _nodes(data: Data, split: Split) -> Samples | None:
    """All nodes of a citation graph, whose public split says which are for what; there is no other test set."""
    if data.path is None:
        raise InputError(f"data.name={data.name} needs data.path=, the Planetoid root that holds <Name>/raw")
    if split == "eval":
        return None
    nodes = planetoid.NodeArray(data.name.partition(":")[2], storage.absolute(data.path))
    if data.download:
        planetoid.fetch(nodes.name, nodes.root)
    known = planetoid.read(nodes.name, nodes.root)
    listing = Listing.of_rows(data.name, len(known.labels), planetoid.stamp(nodes.name, nodes.root))
    return Samples(listing, ArrayReader(nodes), known.labels, split=known.split)


# A bit for each of the 1,797 digits, 1 = evaluation: scikit-learn's train_test_split, stratified, test_size=0.2, seed 0
TEST_DIGITS = (
    "000004883524104000064100934205001a00080100240028062c12001000940a009019120420f8a0028110a000"
    "080a8820441524494240a00a0000004004d80000818020004805c400104008a0100005404800301000020ec409"
    "000224840083a8013c20a6980a0000000b08400804a0184802024041c1008004404684376a8102160044800040"
    "42a0a4180a5000840b8561c608108008004c80c02004068e00010882008100380803c008190000100e01008410"
    "a0210033282904c044c080680e0102830082008822a6402c24042108a860809081a00c02820242120138a41500"
)


def _digits_split(split: Split) -> Samples:
    """A fixed stratified split: 1,437 for training, 360 for evaluation."""
    labels = digits()[1]
    of_test = np.unpackbits(np.frombuffer(bytes.fromhex(TEST_DIGITS), np.uint8), count=len(labels))
    samples = Samples(
        Listing.of_rows("digits", len(labels)),
        ArrayReader(Digits()),
        labels,
        tuple(str(d) for d in range(10)),
    )
    return samples.select(np.flatnonzero(of_test == (split != "train")))
