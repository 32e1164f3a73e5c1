"""What the trainer reads: batches of samples, in the order of the requests, behind one interface.

Resident: all samples decoded once and held in memory. Streaming: read and decoded as they are asked for, with
bounded memory. `open_source` chooses by size; raysurl.scale.data does the same on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from raysurl.data import grouping, manifest
from raysurl.data.dataset import Samples, Unreadable, all_readable
from raysurl.data.decode import Array
from raysurl.data.depth import Depth
from raysurl.data.gather import Gather, Images, stack
from raysurl.data.prefetch import prefetch
from raysurl.data.residency import Mode, available_memory, check_unreadable, choose_mode, same_readable
from raysurl.data.shards import Shard, pack_all
from raysurl.recipe import Data
from raysurl.sampler import Request
from raysurl.windows import Windows

__all__ = ["Images", "Request", "ResidentSource", "Source", "SourceFacts", "StreamingSource", "open_source"]

T = TypeVar("T")
Progress = Callable[[int, int], None]  # samples done, of

_BLOCK = 512  # samples decoded between two reports of progress
_TOGETHER = 4096  # samples of groups, and of no window, that are read at once


@dataclass(frozen=True, eq=False)
class SourceFacts:
    """What is known of the N samples of a source.

    `readable` (N,) bool: only these are in the plan. `labels` (N,) int64 or None; −1 = none. `remarks`:
    sentences for the log. `split` (N,), `label_values`, `tags` (N, T), `depth`: see `Samples`. `windows`: of samples
    that are read in groups as they are asked for; None: all can be shuffled.
    """

    readable: NDArray[np.bool_]
    skipped: tuple[Unreadable, ...]
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...] | None
    mode: Mode
    remarks: tuple[str, ...] = ()
    split: NDArray[np.uint8] | None = None
    label_values: tuple[int, ...] | None = None
    windows: Windows | None = None
    tags: NDArray[np.int8] | None = None
    depth: Depth | None = None


class Source:
    """Base of all sources: the facts, and batches made one step ahead in a background thread."""

    def __init__(self, facts: SourceFacts) -> None:
        self.facts = facts
        self.readable, self.skipped = facts.readable, facts.skipped
        self.labels, self.class_names = facts.labels, facts.class_names
        self.label_values, self.depth = facts.label_values, facts.depth
        self.mode, self.split = facts.mode, facts.split
        self.windows, self.tags = facts.windows, facts.tags

    def __len__(self) -> int:
        return len(self.readable)

    def describe(self) -> str:
        """What is read, how and why, and what was skipped: a few sentences for the log."""
        shown = ", ".join(map(str, self.skipped[:5])) + (", …" if len(self.skipped) > 5 else "")
        count = sum(sample.samples for sample in self.skipped)
        skipped = f"{count} unreadable samples skipped: {shown}" if self.skipped else ""
        return "; ".join(filter(None, [*self.facts.remarks, skipped]))

    def sentences(self) -> list[str]:
        """As `describe`, one by one, and every sample that was skipped."""
        return [*self.facts.remarks, *(f"skipped {sample}" for sample in self.skipped)]

    def batches(self, requests: Iterable[Request], transform: Callable[[Request, Images], T]) -> Iterator[T]:
        """`transform(request, images)` of each request, in order.

        An exception in reading, decoding or `transform` is raised where its batch would have come. Closing
        the iterator early stops the work behind it.
        """
        return prefetch(transform(request, images) for request, images in self.images(requests))

    def images(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Images]]:
        """Each request with its raw images, in order, in the calling thread."""
        raise NotImplementedError


class ResidentSource(Source):
    """Samples from shards in memory, in this process or shared by many."""

    def __init__(self, shards: Sequence[Shard], facts: SourceFacts) -> None:
        super().__init__(facts)
        self.gather = Gather(shards)

    def images(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Images]]:
        for request in requests:
            yield request, self.gather(request.index)


class StreamingSource(Source):
    """Samples read and decoded when they are asked for, by this process alone."""

    def __init__(self, samples: Samples, facts: SourceFacts) -> None:
        super().__init__(facts)
        self.samples = samples

    def images(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Images]]:
        for unit in units(requests, rows_together(self.samples)):
            encoded = self.samples.read(np.concatenate([request.index for request in unit]))
            encoded.reverse()
            for request in unit:
                part = [encoded.pop() for _ in request.index]  # each is let go when it is decoded
                yield request, stack(all_readable(self.samples.decode(request.index, part)))


def rows_together(samples: Samples) -> int:
    """How many samples of no window are read at once: many where neighbours share a group, else as few as asked."""
    return _TOGETHER if samples.reader.grouped else 1


def units(requests: Iterable[Request], rows: int) -> Iterator[list[Request]]:
    """Consecutive requests: those of a window, or as many of none as hold at least `rows` samples."""
    unit: list[Request] = []
    held = 0
    for request in requests:
        if unit and unit[0].window != request.window:
            yield unit
            unit, held = [], 0
        unit.append(request)
        held += len(request.index)
        if held >= rows and request.window is None:
            yield unit
            unit, held = [], 0
    if unit:
        yield unit


# -------------------------------------------------------------------- opening


def open_source(
    samples: Samples,
    data: Data,
    *,
    manifest_path: str | Path | None = None,
    progress: Progress | None = None,
    memory: int | None = None,
) -> Source:
    """The local source of `samples`; every sample is decoded once here, to hold it or to know that it can be.

    `manifest_path`: where the run keeps its listing; found there, it is checked and what it says is reused.
    `memory`: bytes available, measured where not given. Raises InputError where too many samples are
    unreadable, where resident data does not fit, or where the listing is not the run's.
    """
    saved = manifest.restore(samples.listing, manifest_path) if manifest_path else None
    samples = as_saved(samples, saved)
    mode, why = choose_mode(data, samples, memory or available_memory(), saved)
    shards: list[Shard] = []
    if mode == "resident":
        shards, skipped = decode_all(samples, progress)
    elif saved:
        skipped = saved.unreadable(samples.listing)
    else:
        skipped = verify_all(samples, progress)
    facts = checked_facts(samples, data, mode, why, skipped, saved, manifest_path)
    if mode == "resident":
        return ResidentSource(shards, facts)
    return StreamingSource(samples, facts)


def decode_all(samples: Samples, progress: Progress | None = None) -> tuple[list[Shard], list[Unreadable]]:
    """Decode everything once: shards, and what could not be read."""
    skipped: list[Unreadable] = []

    def loaded() -> Iterator[Array | Unreadable]:
        for index in blocks(len(samples)):
            for sample in samples.load(index):
                if isinstance(sample, Unreadable):
                    skipped.append(sample)
                yield sample
            if progress:
                progress(int(index[-1]) + 1, len(samples))

    return list(pack_all(loaded())), skipped


def verify_all(samples: Samples, progress: Progress | None = None) -> list[Unreadable]:
    """Decode everything once, keep nothing, and return what could not be read."""
    skipped: list[Unreadable] = []
    for index in blocks(len(samples)):
        skipped += samples.unreadable(index)
        if progress:
            progress(int(index[-1]) + 1, len(samples))
    return skipped


def blocks(count: int) -> Iterator[NDArray[np.int64]]:
    """0 … count-1 in blocks, between which progress is reported."""
    for begin in range(0, count, _BLOCK):
        yield np.arange(begin, min(begin + _BLOCK, count))


def checked_facts(
    samples: Samples,
    data: Data,
    mode: Mode,
    why: str,
    skipped: Sequence[Unreadable],
    saved: manifest.Saved | None,
    manifest_path: str | Path | None,
) -> SourceFacts:
    """Check what was found against the threshold and the run's earlier start, and write it down."""
    check_unreadable([*skipped, *samples.missing], len(samples), data.max_unreadable)
    readable = np.ones(len(samples), bool)
    readable[[sample.index for sample in skipped]] = False
    if saved:
        skipped = same_readable(samples, saved, readable)
        readable = saved.readable
    elif manifest_path:
        reasons = {sample.index: sample.reason for sample in skipped}
        manifest.save(
            samples.listing,
            manifest_path,
            readable=readable,
            mode=mode,
            reasons=reasons,
            depth=samples.depth,
            class_names=samples.class_names,
            label_values=samples.label_values,
        )
    remarks = [f"data {data.name}: {len(samples):,} samples, {why}", samples.note, samples.depth_note]
    windows = None
    if mode == "streaming":
        windows = grouping.windows_of(samples, data)
        remarks.append(grouping.promise(samples, windows, data))
    said = tuple(filter(None, remarks))
    return SourceFacts(
        readable,
        (*skipped, *samples.missing),
        samples.labels,
        samples.class_names,
        mode,
        said,
        samples.split,
        samples.label_values,
        windows,
        samples.tags,
        samples.depth,
    )


def as_saved(samples: Samples, saved: manifest.Saved | None) -> Samples:
    """Pixels scaled as the run began: its range is the manifest's."""
    return samples if saved is None or saved.depth is None else replace(samples, depth=saved.depth)
