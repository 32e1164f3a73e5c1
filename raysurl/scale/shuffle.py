"""A data set written once in random order, by the cluster's CPUs.

It stands in `to` when all of it does: until then everything lies in hidden folders of `to.unfinished`, which no reader
takes for data, and one renaming ends the work. A second start of the same command goes on with what is there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raysurl import plain
from raysurl.data import manifest
from raysurl.data.dataset import Samples
from raysurl.data.residency import check_unreadable
from raysurl.data.rewriting import Rewriting, collect, identity, lost_of, rewriting_of, scatter
from raysurl.errors import InputError, RunError
from raysurl.scale import joining, pipeline
from raysurl.scale.data import ranges
from raysurl.scale.stream import failure
from raysurl.scale.tasks import Tables, unit_of
from raysurl.train.run_directory import write_atomic

OnProgress = Callable[[str, int, int], None]  # what, done, of


def shuffle(
    samples: Samples, to: Path, *, seed: int, max_unreadable: float, progress: OnProgress | None = None
) -> int:
    """Write `samples` to the folder `to`, which every node must see; returns how many are there.

    Raises InputError where `to` exists, where other unfinished work lies beside it, and where too many samples cannot
    be fetched.
    """
    if to.exists():
        raise InputError(f"to={to} exists already; name another folder")
    folder = to.with_name(f"{to.name}.unfinished")
    rewriting = rewriting_of(samples, seed, folder)
    _claim(rewriting, identity(rewriting, seed))
    joining.connect()
    reference = ray.put(rewriting)
    reads = ranges(samples, rewriting.rows)
    _all(reads, partial(_scatter, reference), "read", progress)
    lost = lost_of(rewriting)
    check_unreadable([*lost, *samples.missing], len(samples), max_unreadable)
    rows = _all(list(range(rewriting.files)), partial(_collect, reference), "written", progress)
    if rows != len(samples) - len(lost):
        raise RunError(
            f"{folder} holds {rows:,} of {len(samples) - len(lost):,} samples; remove it and start again"
        )
    readable = np.ones(len(samples), bool)
    readable[[sample.index for sample in lost]] = False
    manifest.save(
        samples.listing,
        rewriting.done / ".manifest.parquet",
        readable=readable,
        mode="streaming",
        reasons={sample.index: sample.reason for sample in lost},
        depth=samples.depth,
        class_names=samples.class_names,
        label_values=samples.label_values,
    )
    write_atomic(rewriting.done / ".shuffled.json", json.dumps(identity(rewriting, seed), indent=1))
    rewriting.done.rename(to)
    shutil.rmtree(folder)
    return int(readable.sum())


def _claim(rewriting: Rewriting, mine: dict[str, Any]) -> None:
    """Begin, or see that what was begun is the same."""
    what = rewriting.folder / ".shuffle.json"
    if rewriting.folder.exists():
        try:
            same = plain.read_mapping(what) == mine
        except (OSError, ValueError):
            same = False
        if not same:
            raise InputError(
                f"{rewriting.folder} holds the unfinished work of other data or another seed; remove it, or name"
                " another to="
            )
    for path in (rewriting.scattered, rewriting.done):
        path.mkdir(parents=True, exist_ok=True)
    for path in rewriting.folder.glob(".part-*"):  # of processes that were killed
        os.unlink(path)
    write_atomic(what, json.dumps(mine))


def _all(units: list[Any], stage: Any, what: str, progress: OnProgress | None) -> int:
    """Do all units; returns the rows of all."""
    done = rows = 0
    try:
        for reference in pipeline.run(units, [stage], pipeline.budget()):
            for count in ray.get(reference).column("rows").to_pylist():
                done, rows = done + 1, rows + count
            if progress:
                progress(what, done, len(units))
    except ray.exceptions.RayError as error:
        raise failure(error) from error
    return rows


def _scatter(reference: Any, table: Any) -> Tables:
    begin, end = unit_of(table)
    scatter(ray.get(reference), begin, end)
    yield pa.table({"rows": [end - begin]})


def _collect(reference: Any, table: Any) -> Tables:
    yield pa.table({"rows": [collect(ray.get(reference), unit_of(table))]})
