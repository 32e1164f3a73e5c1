"""Decoded samples packed into few large arrays.

A shard holds consecutive samples: dense where its sizes agree, else the pixels one after the other with their
offsets and shapes, at original size, for resizing first would change what a random resized crop sees. Shards
are only ever read, so that any number of processes can share one copy. Free of torch, as `decode` is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysurl.data.dataset import Unreadable
from raysurl.data.decode import Array

SHARD_BYTES = 128 * 2**20  # at most, unless a single sample is larger


@dataclass(frozen=True, eq=False)
class Shard:
    """n consecutive samples: dense `pixels` (n, 3, h, w) or (n, D); or flat `pixels` (bytes,) with `offsets`
    (n+1,) and `shapes` (n, 2), the (h, w) of each. Rows of unreadable samples are zero, or have no pixels."""

    pixels: Array
    offsets: NDArray[np.int64] | None = None
    shapes: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.pixels) if self.offsets is None else len(self.offsets) - 1

    def row(self, i: int) -> Array:
        """Sample i, a view: (3, h, w) or (D,)."""
        if self.offsets is None or self.shapes is None:
            return np.asarray(self.pixels[i])
        row: Array = self.pixels[self.offsets[i] : self.offsets[i + 1]].reshape(3, *self.shapes[i])
        return row


def pack(loaded: Sequence[Array | Unreadable]) -> Shard:
    """Decoded samples as one shard."""
    arrays = [None if isinstance(sample, Unreadable) else sample for sample in loaded]
    present = [array for array in arrays if array is not None]
    shapes = {array.shape for array in present}
    if len(shapes) == 1:
        dense = np.zeros((len(arrays), *present[0].shape), present[0].dtype)
        for i, array in enumerate(arrays):
            if array is not None:
                dense[i] = array
        return Shard(dense)
    sizes = np.array([array.shape[1:] if array is not None else (0, 0) for array in arrays], np.int32)
    offsets = np.concatenate([[0], np.cumsum(3 * sizes.astype(np.int64).prod(axis=1))])
    flat = np.empty(offsets[-1], np.uint8)
    for i, array in enumerate(arrays):
        if array is not None:
            flat[offsets[i] : offsets[i + 1]] = array.reshape(-1)
    return Shard(flat, offsets, sizes)


def pack_all(loaded: Iterable[Array | Unreadable]) -> Iterator[Shard]:
    """Decoded samples as shards of at most SHARD_BYTES, made as the samples come."""
    held: list[Array | Unreadable] = []
    nbytes = 0
    for sample in loaded:
        size = 0 if isinstance(sample, Unreadable) else sample.nbytes
        if held and nbytes + size > SHARD_BYTES:
            yield pack(held)
            held, nbytes = [], 0
        held.append(sample)
        nbytes += size
    if held:
        yield pack(held)
