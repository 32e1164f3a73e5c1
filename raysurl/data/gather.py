"""Batches of images gathered from shards, as tensors of their own memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl.data.decode import Array
from raysurl.data.shards import Shard

Images = Tensor | list[Tensor]
"""uint8 (B, 3, H, W) where all sizes agree, else a list of uint8 (3, h, w); vectors: float32 (B, D)."""


class Gather:
    """Batches by sample index from shards that together hold the samples 0 … N-1 in order."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.starts = np.cumsum([0, *map(len, shards)])
        dense = all(shard.offsets is None for shard in shards)
        shapes = {shard.pixels.shape[1:] for shard in shards}
        self.shape = next(iter(shapes)) if dense and len(shapes) == 1 else None

    def __call__(self, index: NDArray[np.int64]) -> Images:
        """One copy, into a new tensor."""
        if self.shape is None:
            return stack([self.shards[s].row(r) for s, r in self._places(index)])
        first = self.shards[0].pixels
        out = np.empty((len(index), *self.shape), first.dtype)
        if len(self.shards) == 1:
            np.take(first, index, axis=0, out=out, mode="clip")  # mode "raise" would buffer the output
        else:
            for k, (s, r) in enumerate(self._places(index)):  # cheaper than a mask per shard
                out[k] = self.shards[s].pixels[r]
        return torch.from_numpy(out)

    def _places(self, index: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(shard, row in it) of each sample."""
        shard = np.searchsorted(self.starts, index, side="right") - 1
        return list(zip(shard.tolist(), (index - self.starts[shard]).tolist(), strict=True))


def stack(samples: Sequence[Array]) -> Images:
    """Decoded samples as a batch: one tensor where their sizes agree, else a list."""
    if len({sample.shape for sample in samples}) == 1:
        return torch.from_numpy(np.stack(samples))
    return [torch.from_numpy(sample.copy(order="K")) for sample in samples]
