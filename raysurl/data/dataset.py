"""Samples: what a data set holds and how to read it, nothing decoded.

`Samples.read` fetches encoded samples and `Samples.load` decodes them, as plain functions that any process
can run. The sample index is the position in the listing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raysurl.data import storage
from raysurl.data.decode import Array, DecodeError, Flatten, decode
from raysurl.data.manifest import Listing, Unreadable
from raysurl.data.readers import Encoded, Reader
from raysurl.errors import InputError, RunError

__all__ = ["Samples", "Unreadable", "all_readable"]

_PROBES = 16  # samples decoded to estimate the size of all
_CONCURRENT_READS = 16  # files, or requests to a remote store, open at once in a process


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples of one split. Cheap and picklable.

    `labels` (N,) int64, −1 = none, or None where there are no labels; `class_names` by label, where known;
    `note`: a remark on the listing for the log. `flatten`: images become vectors. `split` (N,): the data set's own
    division of its labelled samples, where it has one (raysurl.data.planetoid.TRAIN, VALIDATION, TEST; 0 = in none).
    """

    listing: Listing
    reader: Reader
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    note: str = ""
    flatten: Flatten | None = None
    split: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.listing)

    def name_of(self, index: int) -> str:
        return self.listing.name(index)

    def select(self, index: NDArray[np.int64]) -> Samples:
        """These samples alone, renumbered in the given order."""
        labels = None if self.labels is None else self.labels[index]
        split = None if self.split is None else self.split[index]
        return replace(self, listing=self.listing.select(index), labels=labels, split=split)

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
        probes = np.unique(np.linspace(0, len(self) - 1, _PROBES).astype(np.int64))
        found = [sample for sample in self.load(probes) if not isinstance(sample, Unreadable)]
        return len(found[0]) if found and found[0].ndim == 1 else None

    def nbytes_estimate(self) -> int:
        """Bytes of all samples decoded, from a few of them.

        Raises InputError where none of the few can be read.
        """
        probes = np.unique(np.linspace(0, len(self) - 1, _PROBES).astype(np.int64))
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
                yield decode(sample) if self.flatten is None else self.flatten(decode(sample))
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
            self.listing.path(first), int(self.listing.group[first]), self.listing.row[index]
        )


def all_readable(loaded: Sequence[Array | Unreadable]) -> list[Array]:
    """Samples that were readable when the run began; RunError names one that no longer is."""
    for sample in loaded:
        if isinstance(sample, Unreadable):
            raise RunError(
                f"sample {sample.index} was readable when the run began and no longer is: {sample}"
            )
    return [sample for sample in loaded if not isinstance(sample, Unreadable)]
