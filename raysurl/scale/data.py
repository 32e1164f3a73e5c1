"""Data on a cluster: the driver decodes or verifies every sample once with Ray Data, the workers open the result.

Resident: shards of at most 128 MB in the object store, read without a copy by every worker of a node. They are
results of tasks held by the driver, so they outlive any worker and a restarted group gets the same ones.
Streaming: only what could not be read is kept; see raysurl.scale.stream for the batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from raysurl.data import manifest
from raysurl.data.dataset import Samples, Unreadable
from raysurl.data.residency import choose_mode
from raysurl.data.shards import SHARD_BYTES
from raysurl.data.source import ResidentSource, Source, SourceFacts, StreamingSource, as_saved, checked_facts
from raysurl.recipe import Data, Recipe
from raysurl.scale import pipeline, tasks
from raysurl.scale.blocks import shards_of
from raysurl.scale.stream import RayStreamingSource, RayViewsSource, failure

OnProgress = Callable[[int, int], None]  # samples done, of

_RANGE = 1024  # samples that a verifying task reads at most, about


@dataclass(frozen=True, eq=False)
class PreparedSplit:
    """One split, ready for any number of workers: plain facts and references that the driver must keep.

    `tables`: the resident shards, none when streaming. `samples`, `facts`: a Samples and a SourceFacts.
    """

    tables: list[Any]
    samples: Any
    facts: Any
    nbytes: int

    def open(self, data: Data, *, pipelines: int = 1, views_on_workers: bool = False) -> Source:
        """The source of one worker; `pipelines` is the number of workers."""
        facts: SourceFacts = ray.get(self.facts)
        if facts.mode == "streaming":
            return RayStreamingSource(
                self.samples,
                facts,
                pipelines=pipelines,
                views_on_workers=views_on_workers,
            )
        shards = [shard for table in ray.get(self.tables) for shard in shards_of(table)]
        if views_on_workers:
            return RayViewsSource(self.tables, shards, facts, pipelines=pipelines)
        return ResidentSource(shards, facts)

    def open_alone(self, data: Data) -> Source:
        """As `open`, but streaming data is read by this process itself: Ray Data would want CPUs that trials hold."""
        facts: SourceFacts = ray.get(self.facts)
        if facts.mode == "streaming":
            return StreamingSource(ray.get(self.samples), facts)
        return self.open(data)


Splits = tuple[PreparedSplit, PreparedSplit | None]  # of training, and of testing where there is such data


def prepare(
    recipe: Recipe,
    samples: Samples,
    eval_samples: Samples | None,
    run_dir: Path,
    progress: OnProgress | None = None,
) -> Splits:
    """The driver's part, for both splits; the training split is given the object store first."""
    train = prepare_split(recipe.data, samples, run_dir / "manifest.parquet", progress=progress)
    if eval_samples is None:
        return train, None
    path = run_dir / "eval_manifest.parquet"
    return train, prepare_split(recipe.data, eval_samples, path, taken=train.nbytes, progress=progress)


def open_sources(
    recipe: Recipe, prepared: Splits, world_size: int, *, alone: bool = False
) -> tuple[Source, Source | None]:
    """A worker's part: its training source and, where there is a test set, the source of that.

    `alone`: without Ray Data's tasks, see `PreparedSplit.open_alone`.
    """
    train, test = prepared
    if alone:
        return train.open_alone(recipe.data), None if test is None else test.open_alone(recipe.data)
    in_tasks = recipe.views.device == "workers"
    source = train.open(recipe.data, pipelines=world_size, views_on_workers=in_tasks)
    return source, None if test is None else test.open(recipe.data, pipelines=world_size)


def prepare_split(
    data: Data,
    samples: Samples,
    manifest_path: Path | None = None,
    *,
    taken: int = 0,
    progress: OnProgress | None = None,
) -> PreparedSplit:
    """Choose the mode, decode or verify everything once, and check it; the twin of `source.open_source`.

    `taken`: bytes of the store in use by other resident data of the run. Raises InputError as that does.
    """
    saved = manifest.restore(samples.listing, manifest_path) if manifest_path else None
    samples = as_saved(samples, saved)
    mode, why = choose_mode(data, samples, max(store_bytes() - taken, 0), saved)
    unlabelled = ray.put(replace(samples, labels=None, class_names=None, label_values=None, tags=None))
    tables: list[Any] = []
    if mode == "resident":
        tables, skipped = resident_shards(samples, unlabelled, progress)
    elif saved:
        skipped = saved.unreadable(samples.listing)
    else:
        skipped = verify(samples, unlabelled, progress)
    facts = checked_facts(samples, data, mode, why, skipped, saved, manifest_path)
    nbytes = samples.nbytes_estimate() if mode == "resident" else 0
    return PreparedSplit(tables, unlabelled, ray.put(facts), nbytes)


def store_bytes() -> int:
    """Object store of the smallest node that can train: each node comes to hold all shards its workers read."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    stores = [n.get("object_store_memory", 0) for n in nodes if n.get("CPU", 0) or n.get("GPU", 0)]
    return int(min(stores, default=0))


def resident_shards(
    samples: Samples, reference: Any, progress: OnProgress | None = None
) -> tuple[list[Any], list[Unreadable]]:
    """References to tables of shards that hold all samples in order, and what could not be read."""
    limits = pipeline.budget()
    per_sample = max(samples.nbytes_estimate() // len(samples), 1)
    rows = min(SHARD_BYTES // per_sample, -(-len(samples) // (2 * limits.tasks)))
    limits = replace(limits, store=store_bytes())
    tables: list[Any] = []
    skipped: list[Unreadable] = []
    done = 0
    look = ray.remote(num_cpus=0)(tasks.look)
    for table in _run(ranges(samples, max(rows, 64)), partial(tasks.shards, reference), limits):
        tables.append(table)
        rows_of, lost = ray.get(look.remote(table))
        skipped += lost
        done += rows_of
        if progress:
            progress(done, len(samples))
    return tables, skipped


def verify(samples: Samples, reference: Any, progress: OnProgress | None = None) -> list[Unreadable]:
    """Decode everything once on the cluster, keep nothing, and return what could not be read."""
    skipped: list[Unreadable] = []
    done = 0
    for reference_ in _run(ranges(samples, _RANGE), partial(tasks.verify, reference), pipeline.budget()):
        table = ray.get(reference_)
        for text in table.column("skipped").to_pylist():
            skipped += [Unreadable(**sample) for sample in json.loads(text)]
        done = table.column("end")[-1].as_py()
        if progress:
            progress(done, len(samples))
    return skipped


def ranges(samples: Samples, rows: int) -> list[tuple[int, int]]:
    """(begin, end) of consecutive samples, about `rows` each; row groups are cut only where they are longer."""
    cuts = _group_ends(samples) if samples.reader.grouped else np.arange(1, len(samples) + 1)
    result: list[tuple[int, int]] = []
    begin = 0
    while begin < len(samples):
        end = min(begin + rows, len(samples))
        last = int(cuts[np.searchsorted(cuts, end, side="right") - 1]) if cuts[0] <= end else 0
        if last > begin:
            end = last
        result.append((begin, end))
        begin = end
    return result


def _group_ends(samples: Samples) -> NDArray[np.int64]:
    """Where the last sample of each row group is followed by another group's, or by nothing."""
    listing = samples.listing
    change = (np.diff(listing.file) != 0) | (np.diff(listing.group) != 0)
    return np.append(np.flatnonzero(change) + 1, len(listing))


def _run(units: list[tuple[int, int]], stage: Any, limits: pipeline.Budget) -> Iterator[Any]:
    try:
        yield from pipeline.run(units, [stage], limits)
    except ray.exceptions.RayError as error:
        raise failure(error) from error
