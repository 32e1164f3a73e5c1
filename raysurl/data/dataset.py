"""Samples: what a data set holds and how to read it, nothing decoded.

`Samples.read` fetches encoded samples and `Samples.load` decodes them, as plain functions that any process
can run. The sample index is the position in the listing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raysurl.data import storage
from raysurl.data.decode import Array, DecodeError, Flatten, decode, is_wide, pixels_of
from raysurl.data.depth import Depth, Extent
from raysurl.data.labels import Classes, Labels, classes_of
from raysurl.data.manifest import Listing, Unreadable
from raysurl.data.readers import ArrayReader, Encoded, Reader, load_once
from raysurl.errors import InputError, RunError

__all__ = ["Samples", "Unreadable", "all_readable"]

# of a data set in which no wide pixels were found: one that turns up is named, not guessed at
NARROW = Depth(0, 8, beyond=0.0)
_PROBES = 16  # samples decoded to estimate the size of all
_HEADS = 1024  # samples whose heads say whether pixels are wider than a byte
_MEASURED = 8192  # samples whose pixels say in what range they lie
_MEASURED_BYTES = 2**32  # that these may have as files, about
_OF_GROUP = 64  # of these taken together where they lie in one row group
_BLOCK = 256  # of these read at once
_CONCURRENT_READS = 16  # files, or requests to a remote store, open at once in a process


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples of one split. Cheap and picklable.

    `labels` (N,) int64, 0 … C−1 or −1 = none, or None where there are no labels; `class_names` (C,) by label, where
    known; `label_values` (C,): the numbers that the data give the classes, where these are not 0 … C−1;
    `text_labels`: the data name the classes and do not number them.
    `note`: a remark on the listing for the log. `missing`: what could not be opened when the data were listed, and is
    no sample. `flatten`: images become vectors. `depth`: the range of pixels wider than a byte; `depth_note`: a remark
    on it. `split` (N,): the data set's own division of its labelled samples, where it has one
    (raysurl.data.planetoid.TRAIN, VALIDATION, TEST; 0 = in none). `tags` (N, T) int8, of samples that show several
    classes at once: 1 = shown, 0 = not, −1 = not to be judged; `tag_names` (T,).
    """

    listing: Listing
    reader: Reader
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    note: str = ""
    flatten: Flatten | None = None
    split: NDArray[np.uint8] | None = None
    label_values: tuple[int, ...] | None = None
    text_labels: bool = False
    missing: tuple[Unreadable, ...] = ()
    depth: Depth | None = None
    tags: NDArray[np.int8] | None = None
    tag_names: tuple[str, ...] = ()
    depth_note: str = ""

    def __len__(self) -> int:
        return len(self.listing)

    def name_of(self, index: int) -> str:
        return self.listing.name(index)

    def original_labels(self) -> NDArray[np.int64]:
        """(N,) the numbers that the data give the classes; −1 where a sample has none."""
        if self.labels is None:
            return np.full(len(self), -1, np.int64)
        if self.label_values is None:
            return self.labels
        return np.append(np.array(self.label_values, np.int64), -1)[self.labels]

    def names_by_value(self) -> dict[str, str]:
        """Class names by what `original_labels` gives; empty where the classes have numbers only."""
        values = range(len(self.class_names or ())) if self.label_values is None else self.label_values
        return {str(value): name for value, name in zip(values, self.class_names or (), strict=True)}

    def labelled(self, labels: Labels) -> Samples:
        return replace(
            self,
            labels=labels.ids,
            class_names=labels.names,
            label_values=labels.values,
            text_labels=labels.text,
        ).with_note(labels.note)

    def classes(self) -> Classes | None:
        """By what a test set's labels are to be numbered; None where these have none."""
        return classes_of(self.labels, self.class_names, self.label_values, self.text_labels)

    def with_missing(self, missing: tuple[Unreadable, ...]) -> Samples:
        return replace(self, missing=missing)

    def with_note(self, *remarks: str) -> Samples:
        return replace(self, note="; ".join(filter(None, [self.note, *remarks])))

    def select(self, index: NDArray[np.int64]) -> Samples:
        """These samples alone, renumbered in the given order."""
        labels = None if self.labels is None else self.labels[index]
        split = None if self.split is None else self.split[index]
        tags = None if self.tags is None else self.tags[index]
        return replace(self, listing=self.listing.select(index), labels=labels, split=split, tags=tags)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Encoded]:
        """Encoded samples in the order asked for: bytes, an array, or a DecodeError where fetching failed.

        Each file and row group is opened once per call.
        """
        index = np.asarray(indices, np.int64)
        result: list[Encoded] = [DecodeError("it was not read")] * len(index)
        chunks = list(self._by_group(index))
        waits = storage.is_uri(self.listing.root) or not (self.reader.grouped or self.reader.in_memory)
        if waits and len(chunks) > 1:  # files may lie on a network: wait for many at once
            with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
                fetched = list(pool.map(self._read_chunk, [index[at] for at in chunks]))
        else:
            fetched = [self._read_chunk(index[at]) for at in chunks]
        for at, samples in zip(chunks, fetched, strict=True):
            for position, sample in zip(at.tolist(), samples, strict=True):
                result[position] = sample
        return result

    def load(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Array | Unreadable]:
        """Decoded samples in the order asked for: uint8 (3, h, w), or float32 (D,) vectors."""
        return self.decode(indices, self.read(indices))

    def decode(
        self, indices: Sequence[int] | NDArray[np.int64], encoded: Sequence[Encoded]
    ) -> list[Array | Unreadable]:
        """Decode what `read` gave for the same indices."""
        return list(self._decoded(indices, encoded))

    def unreadable(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Unreadable]:
        """Those of the samples that cannot be read; each is decoded and let go at once."""
        decoded = self._decoded(indices, self.read(indices))
        return [sample for sample in decoded if isinstance(sample, Unreadable)]

    def width(self) -> int | None:
        """Values D of a sample that is a vector; None for images, or where none of a few can be read."""
        probes = evenly(len(self), _PROBES)
        found = [sample for sample in self.load(probes) if not isinstance(sample, Unreadable)]
        return len(found[0]) if found and found[0].ndim == 1 else None

    def has_wide(self) -> bool:
        """Whether some samples have pixels wider than a byte: by the heads of all, or of many where there are more."""
        if isinstance(self.reader, ArrayReader):
            return len(self) > 0 and is_wide(load_once(self.reader.origin)[:1][0])
        return any(
            not isinstance(sample, DecodeError) and is_wide(sample)
            for block in self._spread(_HEADS)
            for sample in self.read(block)
        )

    def extent(self) -> Extent:
        """The values of all pixels wider than a byte, or of very many samples' where there are more."""
        found = Extent()
        if isinstance(self.reader, ArrayReader):
            array = load_once(self.reader.origin)
            rows = self.listing.row
            for at in range(0, len(rows), _HEADS):
                found.add(np.asarray(array[rows[at : at + _HEADS]]))
            found.samples = len(rows)
            return found
        each = 1 if self.listing.stamps is None else int(self.listing.stamps[:, 0].sum()) // max(len(self), 1)
        for block in self._spread(min(_MEASURED, max(_MEASURED_BYTES // max(each, 1), _HEADS // 16))):
            found.samples += len(block)
            for sample in self.read(block):
                with contextlib.suppress(DecodeError):  # it will be named when all are read
                    if not isinstance(sample, DecodeError) and is_wide(sample):
                        found.add(pixels_of(sample))
        return found

    def _spread(self, most: int) -> Iterator[NDArray[np.int64]]:
        """All indices, or about `most` evenly spaced ones, in blocks: of row groups the first rows of some."""
        index = evenly(len(self), most)
        if self.reader.grouped and most < len(self):
            change = (np.diff(self.listing.file) != 0) | (np.diff(self.listing.group) != 0)
            begins = np.append(0, np.flatnonzero(change) + 1)
            ends = np.append(begins[1:], len(self))
            chosen = evenly(len(begins), max(most // _OF_GROUP, 1))
            each = -(-most // len(chosen))
            index = np.concatenate([np.arange(begins[g], min(begins[g] + each, ends[g])) for g in chosen])
        yield from (index[at : at + _BLOCK] for at in range(0, len(index), _BLOCK))

    def nbytes_estimate(self) -> int:
        """Bytes of all samples decoded, from a few of them.

        Raises InputError where none of the few can be read.
        """
        probes = evenly(len(self), _PROBES)
        loaded = self.load(probes)
        sizes = [sample.nbytes for sample in loaded if not isinstance(sample, Unreadable)]
        if not sizes:
            first = next(sample for sample in loaded if isinstance(sample, Unreadable))
            raise InputError(f"none of {len(probes)} probed samples is a readable image: first {first}")
        return int(np.mean(sizes) * len(self))

    def _decoded(
        self, indices: Sequence[int] | NDArray[np.int64], encoded: Sequence[Encoded]
    ) -> Iterator[Array | Unreadable]:
        for index, sample in zip(indices, encoded, strict=True):
            try:
                if isinstance(sample, DecodeError):
                    raise sample
                image = decode(sample, self.depth or NARROW)
                yield image if self.flatten is None else self.flatten(image)
            except DecodeError as error:
                yield Unreadable(int(index), self.name_of(int(index)), str(error))

    def _by_group(self, index: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Positions in `index` that lie in the same row group of the same file."""
        keys = self.listing.file[index].astype(np.int64) << 32 | (self.listing.group[index] + 1)
        order = np.argsort(keys, kind="stable")
        yield from (at for at in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(at))

    def _read_chunk(self, index: NDArray[np.int64]) -> Sequence[Encoded]:
        first = int(index[0])
        return self.reader.read(
            self.listing.path(first),
            int(self.listing.group[first]),
            self.listing.row[index],
            self.listing.stamp(first),
        )


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """0 … count−1, or `most` of them evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def all_readable(loaded: Sequence[Array | Unreadable]) -> list[Array]:
    """Samples that were readable when the run began; RunError names one that no longer is."""
    for sample in loaded:
        if isinstance(sample, Unreadable):
            raise RunError(
                f"sample {sample.index} was readable when the run began and no longer is: {sample}"
            )
    return [sample for sample in loaded if not isinstance(sample, Unreadable)]
