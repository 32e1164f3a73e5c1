"""Images of stripes, which a class has at an angle of its own; made when they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raysurl.data.dataset import Samples
from raysurl.data.manifest import Listing
from raysurl.recipe import Data


@dataclass(frozen=True)
class Drawn:
    """Reads sample number `row` by drawing it."""

    count: int
    in_memory: ClassVar[bool] = True
    grouped: ClassVar[bool] = False

    def read(self, path, group, rows, stamp=None):
        grid = np.arange(8)
        images = []
        for row in rows.tolist():
            angle, phase = np.pi * (row % 3) / 3, row // 3 % 8
            waves = np.sin(grid[:, None] * np.sin(angle) + grid * np.cos(angle) + phase)
            images.append(((waves + 1) * 127).astype(np.uint8))
        return images


def stripes(data: Data, split: str, *, samples: int = 48) -> Samples:
    count = samples if split == "train" else samples // 2
    labels = np.arange(count) % 3
    return Samples(
        Listing.of_rows(f"stripes {split}", count), Drawn(count), labels, ("flat", "steep", "steeper")
    )
