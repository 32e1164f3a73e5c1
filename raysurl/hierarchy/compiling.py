"""Compile the hierarchy's code into the cache of numba: `python -m raysurl.hierarchy.compiling`, once on a machine."""

from __future__ import annotations

import numpy as np

from raysurl import streams
from raysurl.hierarchy import Hierarchy

SAMPLES, DIM, BATCH = 256, 8, 64


def main() -> None:
    """A small hierarchy's whole life: compiled code is the same for all sizes and settings."""
    random = streams.numpy_stream(0, "compiling")
    rows = np.repeat(random.standard_normal((8, DIM)), SAMPLES // 8, axis=0) + 0.1 * random.standard_normal(
        (SAMPLES, DIM)
    )
    for propagate in (False, True):
        hierarchy = Hierarchy(
            SAMPLES,
            DIM,
            levels=3,
            merge_thresholds=(0.9, 0.7),
            mode="label_propagation" if propagate else "nearest",
        )
        hierarchy.fit(rows)
        for _ in range(SAMPLES // BATCH + 1):  # sums are recomputed after a pass
            hierarchy.update(random.permutation(SAMPLES)[:BATCH], random.standard_normal((BATCH, DIM)))
        hierarchy.labels(np.arange(BATCH))


if __name__ == "__main__":
    main()
