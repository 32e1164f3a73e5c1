"""The range of integer pixels wider than a byte: decided once for a data set, never for an image.

Cameras of 10 and 12 bits, microscopes and scanners store their values in 16 or 32 bits and use the low ones only: the
high byte of such a value is black. What is used shows in the largest value of the whole data set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MOST_BITS = 63


class DepthError(ValueError):
    """Pixels lie outside the data set's range; the message says how."""


@dataclass(frozen=True)
class Depth:
    """Pixels lie in low … low + 2^bits − 1; their highest eight bits become the byte."""

    low: int
    bits: int

    def __post_init__(self) -> None:
        if not (isinstance(self.low, int) and isinstance(self.bits, int) and 1 <= self.bits <= MOST_BITS):
            raise ValueError(f"a range of {self.bits} bits from {self.low} is none of pixels")

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
            raise DepthError(
                f"its pixels run from {least} to {most} and those of the data set from {self.low} to {self.high};"
                " set data.bits to the bits of a pixel"
            )
        values = pixels.astype(np.int64) - self.low
        if self.bits >= 8:
            return (values >> (self.bits - 8)).astype(np.uint8)
        return (values * 255 // (2**self.bits - 1)).astype(np.uint8)

    def __str__(self) -> str:
        return f"{self.low} … {self.high} ({self.bits} bits)"


def depth_of(images: Iterable[Array]) -> Depth | None:
    """The range of all pixels that are wider than a byte; None where none is."""
    least, most, wide = 0, 0, False
    for pixels in images:
        if pixels.dtype != np.uint8 and pixels.size:
            wide, least, most = True, min(least, int(pixels.min())), max(most, int(pixels.max()))
    if not wide:
        return None
    low = -(2 ** (-1 - least).bit_length()) if least < 0 else 0
    return Depth(low, min(max((most - low).bit_length(), 1), MOST_BITS))
