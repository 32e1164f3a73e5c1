"""Windows: the order of samples that are read in groups, of which memory cannot hold all.

A row group of a Parquet file, or a shard, costs about the same to read whole as for one sample. So an epoch is cut
into K windows of as many groups as may be held at once, and a window is
permuted exactly within itself. The groups of a window are spread over the whole listing: of any K groups that follow
each other from a multiple of K on, every window gets one, and which one is random. Where the listing is sorted by
class, each window so holds as many classes as it can. Where that are too few, a group is read more than once, a random
part of it for each of several windows.

A window is a whole number of global batches: no batch asks for the groups of two windows, and the one group at a seam
is read for both. A group that is larger than a window is always cut into parts that are not.

Letters: N samples, n of them in use, B global batch, K windows, P groups or parts of groups, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma

import numpy as np
from numpy.typing import NDArray

from raysurl import streams

Index = NDArray[np.int64]

NEAR = 0.95  # of the classes of a full shuffle: what an order must reach to count as one
PARTS = 1.5  # groups that a window is to hold parts of, by sample of a batch
MOST_READS = 4  # of a group in an epoch, unless it is larger than a window or the recipe says more
_BATCHES = 64  # batches whose classes are counted, evenly spaced in an epoch


@dataclass(frozen=True, eq=False)
class Windows:
    """`group` (N,) int64, which does not fall: samples of one number are read together. `size`: samples that a window
    holds; where groups are of one length at most these, and less than B more from a seam. `reads`: parts that each
    group is cut into, each for a window of its own and at the cost of a read; None: see `reads_of`."""

    group: Index
    size: int
    reads: int | None = None


def order_in_windows(
    readable: Index, windows: Windows, batch_size: int, seed: int, epoch: int
) -> tuple[Index, Index]:
    """(n,) `readable` in the order of one epoch, and (K+1,) the positions at which windows begin, with n behind them.

    `readable` (n,) int64, rising. A pure function of its arguments.
    """
    n = len(readable)
    reads = windows.reads or reads_of(windows, readable, batch_size)
    part = parts(
        windows.group[readable], windows.size, reads, streams.raw_bits(n, seed, "order", epoch, "parts")
    )
    count = int(part.max()) + 1
    together = max(1, int(windows.size * count // n))  # groups that a window holds
    number = -(-count // together)
    bits = streams.raw_bits(2 * count + number, seed, "order", epoch, "groups")
    spread, follow, place = bits[:count], bits[count : 2 * count], bits[2 * count :]
    in_stratum = np.lexsort((spread, np.arange(count) // number))
    window = np.empty(count, np.int64)  # of each part
    window[in_stratum] = np.argsort(place, kind="stable")[np.arange(count) % number]
    one, other = streams.raw_bits(2 * n, seed, "order", epoch, "samples").reshape(2, n)
    sequence = np.lexsort((one, follow[part], window[part]))
    sizes = np.bincount(window[part], minlength=number)
    seams = np.unique(np.append(0, np.cumsum(sizes) // batch_size * batch_size))
    seams[-1] = n
    of_position = np.searchsorted(seams, np.arange(n), side="right")
    return readable[sequence[np.lexsort((other, of_position))]], seams.astype(np.int64)


def reads_of(windows: Windows, readable: Index, batch_size: int) -> int:
    """As many reads of a group, up to MOST_READS, as let a window hold parts of PARTS · B groups.

    What a batch draws from fewer groups has fewer classes than a full shuffle, where each group is of one class.
    """
    count = len(np.unique(windows.group[readable]))
    return min(max(-(-int(PARTS * batch_size) * len(readable) // (windows.size * count)), 1), MOST_READS)


def parts(group: Index, size: int, reads: int, keys: NDArray[np.uint64]) -> Index:
    """(n,) numbers 0 … P−1, rising with the listing: of the groups (n,), or of their parts, chosen by `keys` (n,)."""
    begins = np.append(0, np.flatnonzero(np.diff(group)) + 1)
    lengths = np.diff(np.append(begins, len(group)))
    of_group = np.repeat(np.arange(len(begins)), lengths)
    each = np.minimum(np.maximum(-(-lengths // size), reads), lengths)
    first = np.cumsum(each) - each
    if each.max() == 1:
        return of_group
    rank = np.empty(len(group), np.int64)
    rank[np.lexsort((keys, of_group))] = np.arange(len(group)) - np.repeat(begins, lengths)
    return np.asarray(first[of_group] + rank % each[of_group], np.int64)


# -------------------------------------------------------------------- how well an order mixes


def classes_in_a_shuffle(counts: NDArray[np.integer], total: int, batch_size: int) -> float:
    """Expected number of classes in a batch of B drawn from `total` samples, `counts` (C,) of which are of each class:
    Σ_c 1 − C(total − n_c, B) / C(total, B)."""
    if batch_size > total:
        return float((np.asarray(counts) > 0).sum())
    missed = 0.0
    values, repeats = np.unique(np.asarray(counts)[np.asarray(counts) > 0], return_counts=True)
    for own, times in zip(values.tolist(), repeats.tolist(), strict=True):
        if total - own >= batch_size:
            missed += times * np.exp(_choices(total - own, batch_size) - _choices(total, batch_size))
    return float(repeats.sum() - missed)


def _choices(n: int, k: int) -> float:
    """log C(n, k)"""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def classes_in_batches(order: Index, labels: Index, batch_size: int) -> float:
    """Mean number of classes, counted in many batches of an epoch's `order` (n,); labels (N,), −1 = none."""
    steps = len(order) // batch_size
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, _BATCHES)).astype(int))
    found = [np.unique(labels[order[i * batch_size : (i + 1) * batch_size]]) for i in chosen]
    return float(np.mean([(classes >= 0).sum() for classes in found]))
