"""Which samples are read together, how many of these are held at once, and what that means for the order.

Samples that are read one by one, or are in memory, are all shuffled, whatever their number. See raysurl.windows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raysurl.data.dataset import Samples
from raysurl.data.machine import free_memory
from raysurl.data.manifest import Listing
from raysurl.data.residency import gigabytes
from raysurl.recipe import Data
from raysurl.sampler import Plan
from raysurl.windows import NEAR, Windows, classes_in_a_shuffle, classes_in_batches, reads_of

WINDOW_BYTES = 2**32  # of encoded samples that a window holds, where the recipe names no number
_UNKNOWN_BYTES = 2**17  # of an encoded sample, where the listing knows no sizes


def windows_of(samples: Samples, data: Data) -> Windows | None:
    """How streaming samples are shuffled: as many together as `data.window`, or WINDOW_BYTES, hold; None: all.

    A function of the listing and the recipe alone, so that the order is the same wherever the run goes on.
    """
    if not samples.reader.grouped:
        return None
    size = data.window or max(WINDOW_BYTES // bytes_each(samples.listing), 1)
    return Windows(groups_of(samples.listing), size, data.reads)


def groups_of(listing: Listing) -> NDArray[np.int64]:
    """(N,) numbers that do not fall: the samples of one row group, or of one file without, have the same."""
    change = (np.diff(listing.file) != 0) | (np.diff(listing.group) != 0)
    return np.append(0, np.cumsum(change)).astype(np.int64)


def bytes_each(listing: Listing) -> int:
    """Bytes of an encoded sample, from the sizes of the files; of a file of which some samples are used, all count."""
    if listing.stamps is None:
        return _UNKNOWN_BYTES
    rows = np.zeros(len(listing.stamps), np.int64)
    np.maximum.at(rows, listing.file, np.maximum(listing.row + 1, 1))
    return max(int(listing.stamps[:, 0].sum()) // max(int(rows.sum()), 1), 1)


def promise(samples: Samples, windows: Windows | None, data: Data) -> str:
    """What is promised of the order of streaming samples, for the log."""
    text = "the order is exact, independent of the number of workers, and resumes exactly; "
    count = len(samples)
    if windows is None:
        unused = ", so that data.window changes nothing" if data.window else ""
        return f"{text}each sample is read alone{unused}: all are shuffled"
    if windows.size >= count:
        return f"{text}all are shuffled"
    text += (
        f"shuffled in windows of about {windows.size:,} samples (data.window), each of groups of rows from the whole"
        " listing"
    )
    held = windows.size * bytes_each(samples.listing)
    if held > (free := free_memory()):
        text += (
            f"; warning: a window takes about {gigabytes(held)} and {gigabytes(free)} are free; a smaller data.window"
            " takes less and mixes less"
        )
    return text


def mixing(plan: Plan, labels: NDArray[np.int64] | None) -> str:
    """A sentence on how many classes, or groups, a batch holds beside a full shuffle; empty where all are shuffled.

    It is a warning, with the cause and what helps, where that is less than NEAR of a full shuffle.
    """
    windows = plan.windows
    if windows is None or not plan.in_windows:
        return ""
    used, batch_size = plan.readable, plan.batch_size
    known = labels is not None and bool((labels[used] >= 0).any())
    kinds = labels if labels is not None and known else windows.group
    what = "classes" if known else "groups of rows"
    counts = np.bincount(kinds[used][kinds[used] >= 0])
    whole = classes_in_a_shuffle(counts, len(used), batch_size)
    found = classes_in_batches(plan.order(0), kinds, batch_size)
    text = f"a batch of {batch_size:,} holds samples of {found:,.0f} {what}, in a full shuffle {whole:,.0f}"
    if found >= NEAR * whole:
        return text
    lengths = np.bincount(windows.group[used])
    length = int(np.median(lengths[lengths > 0]))
    reads = windows.reads or reads_of(windows, used, batch_size)
    together = max(1, windows.size * reads // length)
    part = f"a part (1/{reads}) of " if reads > 1 else ""
    why = (
        f"the data lie in groups of {length:,} rows, and a window of {windows.size:,} samples holds {part}{together:,}"
        " of them"
    )
    helps = (
        "`raysurl shuffle` rewrites them once in random order; a larger data.window takes memory, and data.reads above"
        f" {reads} reads each group as often in an epoch"
    )
    if not known:
        return f"{text}: {why}; where neighbours are alike, {helps}"
    return f"warning: {text}: {why}; {helps}"
