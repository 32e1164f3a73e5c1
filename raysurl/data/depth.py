"""The range of integer pixels wider than a byte: decided once for a data set, never for an image.

Cameras of 10 and 12 bits, microscopes and scanners store their values in 16 or 32 bits and use the low ones only: the
high byte of such a value is black. What is used shows in the largest value of the whole data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MOST_BITS = 63
INT64 = np.iinfo(np.int64)
FEW = 0.01  # of an image's pixels: more than these outside, and it is of another range
STRAY = 1e-4  # of all pixels, that may be those of broken sensor cells


class DepthError(ValueError):
    """Pixels lie outside the data set's range; the message says how."""


@dataclass(frozen=True)
class Depth:
    """Pixels lie in low … low + 2^bits − 1; their highest eight bits become the byte.

    Pixels outside are taken for the nearest end, where they are at most `beyond` (a share) of an image.
    """

    low: int
    bits: int
    beyond: float = FEW

    def __post_init__(self) -> None:
        whole = type(self.low) is int and type(self.bits) is int
        if not (
            whole and 1 <= self.bits <= MOST_BITS and INT64.min <= self.low <= INT64.max - 2**self.bits + 1
        ):
            raise ValueError(f"a range of {self.bits} bits from {self.low} is none of pixels")

    @classmethod
    def of_tree(cls, tree: Mapping[str, Any] | None) -> Depth | None:
        """What `tree` gave. Raises KeyError, TypeError or ValueError for anything else."""
        return None if tree is None else cls(tree["low"], tree["bits"])

    def tree(self) -> dict[str, int]:
        return {"low": self.low, "bits": self.bits}

    @property
    def high(self) -> int:
        return self.low + 2**self.bits - 1

    def to_bytes(self, pixels: Array) -> NDArray[np.uint8]:
        """Integers of any width → uint8 of the same shape; uint8 stays as it is. DepthError outside the range."""
        if pixels.dtype == np.uint8:
            return pixels
        if not pixels.size:
            return pixels.astype(np.uint8)
        least, most = int(pixels.min()), int(pixels.max())
        if least < self.low or most > self.high:
            pixels = self._cut(pixels, least, most)
        values = pixels.astype(np.int64) - self.low
        if self.bits >= 8:
            return (values >> (self.bits - 8)).astype(np.uint8)
        return (values * 255 // (2**self.bits - 1)).astype(np.uint8)

    def _cut(self, pixels: Array, least: int, most: int) -> Array:
        outside = np.count_nonzero(pixels < self.low) + np.count_nonzero(pixels > self.high)
        if outside > self.beyond * pixels.size:
            raise DepthError(
                f"its pixels run from {least} to {most} and those of the data set from {self.low} to {self.high};"
                " set data.bits to the bits of a pixel"
            )
        if pixels.dtype == np.uint64:
            pixels = np.minimum(pixels, np.uint64(INT64.max))
        return np.clip(pixels.astype(np.int64), self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low} … {self.high} ({self.bits} bits)"


@dataclass
class Extent:
    """What values pixels wider than a byte have; `counts` (64,): those of at least 2^k, for k from 8 on."""

    samples: int = 0  # that were looked at, narrow ones too
    pixels: int = 0
    least: int = 0
    most: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MOST_BITS + 1, np.int64))

    def add(self, pixels: Array) -> None:
        """Integers of any shape; bytes count for nothing."""
        if pixels.dtype == np.uint8 or pixels.dtype.kind not in "uib" or not pixels.size:
            return
        most = int(pixels.max())
        self.pixels += pixels.size
        self.least, self.most = min(self.least, int(pixels.min())), max(self.most, most)
        for bits in range(8, min(most.bit_length() if most > 0 else 0, MOST_BITS)):
            self.counts[bits] += np.count_nonzero(pixels >= 2**bits)

    @property
    def depth(self) -> Depth | None:
        """The range of all pixels that are wider than a byte; None where none is."""
        if not self.pixels:
            return None
        low = -(2 ** (-1 - self.least).bit_length()) if self.least < 0 else 0
        return Depth(low, min(max((self.most - low).bit_length(), 1), MOST_BITS))

    def stray(self) -> str:
        """A sentence where a few pixels alone, as of broken cells of a sensor, make the range so wide; else empty."""
        depth = self.depth
        if depth is None or depth.low < 0:
            return ""
        for bits in range(8, depth.bits - 1):
            if self.counts[bits] <= STRAY * self.pixels:
                share = 100 * self.counts[bits] / self.pixels
                return (
                    f"only {share:.2g} % of the pixels are above {2**bits - 1}: data.bits={bits} takes those for the"
                    " brightest and shows more of the others"
                )
        return ""

    def outside(self, depth: Depth) -> str:
        """A sentence where pixels lie outside a range; else empty."""
        if self.least >= depth.low and self.most <= depth.high:
            return ""
        return f"these pixels run from {self.least} to {self.most}, and those outside are taken for its ends"


def depth_of(images: Iterable[Array]) -> Depth | None:
    """The range of all pixels that are wider than a byte; None where none is."""
    found = Extent()
    for pixels in images:
        found.add(pixels)
    return found.depth
