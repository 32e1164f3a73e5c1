"""Which clusters, and which of their samples, a run's report shows: a few trees of nested clusters.

Of the coarsest level three clusters are chosen: the largest, the one of median size and one at random, the latter two
among those that have at least two children. Below each stand its largest children, and so on down to the finest level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysurl import streams

Index = NDArray[np.int64]
SHOWN_IMAGES, SHOWN_CHILDREN = 10, 3


@dataclass(frozen=True)
class SheetRow:
    """A row of the sheet: `samples` (n ≤ 10,) drawn at random from a cluster of `size` samples.

    `level` counts from 2, the finest level above the samples; `children` are the clusters (on level 2: the samples)
    within it. `chosen` says why a tree is shown, "" below its top. `common` is the class that most labelled members
    have, `share` how many; −1 and NaN without labels.
    """

    chosen: str
    level: int
    size: int
    children: int
    common: int
    share: float
    samples: Index


def sheet(labels: Index, readable: NDArray[np.bool_], truth: Index | None, *, seed: int) -> list[SheetRow]:
    """Lines of the sheet for cluster labels (levels, N), finest first; each tree's top, then what is below it.

    `readable` (N,): the samples that can be shown; `truth` (N,) class labels, −1 = none, or None.
    """
    if not len(labels) or not readable.any():
        return []
    random = streams.numpy_stream(seed, "contact sheet")
    members = np.flatnonzero(readable)
    found = []
    for chosen, top in tops(labels, members, random).items():
        of_top = members[labels[-1, members] == top]
        found += list(_lines(labels, len(labels) - 1, of_top, chosen, truth, random))
    return found


def tops(labels: Index, members: Index, random: np.random.Generator) -> dict[str, int]:
    """Why -> which cluster of the coarsest level; none twice."""
    ids, own, size = np.unique(labels[-1, members], return_inverse=True, return_counts=True)
    order = np.argsort(-size, kind="stable")
    below = labels[-2, members] if len(labels) > 1 else members
    pairs = np.unique(np.stack([own, below]), axis=1)
    children = np.bincount(pairs[0], minlength=len(ids))
    parted = [int(ids[i]) for i in order[1:] if children[i] >= 2]
    found = {"largest": int(ids[order[0]])}
    if parted:
        found["median"] = parted.pop(len(parted) // 2)
    if parted:
        found["random"] = parted[random.integers(len(parted))]
    return found


def _lines(
    labels: Index, row: int, members: Index, chosen: str, truth: Index | None, random: np.random.Generator
) -> Iterator[SheetRow]:
    """A cluster, then its largest children."""
    known = np.zeros(0, np.int64) if truth is None else truth[members][truth[members] >= 0]
    classes, count = np.unique(known, return_counts=True)
    yield SheetRow(
        chosen=chosen,
        level=row + 2,
        size=len(members),
        children=_children(labels, row, members),
        common=int(classes[count.argmax()]) if len(known) else -1,
        share=float(count.max() / len(known)) if len(known) else float("nan"),
        samples=np.sort(random.permutation(members)[:SHOWN_IMAGES]),
    )
    if row:
        ids, size = np.unique(labels[row - 1, members], return_counts=True)
        for child in ids[np.argsort(-size, kind="stable")][:SHOWN_CHILDREN]:
            of_child = members[labels[row - 1, members] == child]
            yield from _lines(labels, row - 1, of_child, "", truth, random)


def _children(labels: Index, row: int, members: Index) -> int:
    return len(np.unique(labels[row - 1, members])) if row else len(members)
