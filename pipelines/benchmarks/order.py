"""How many classes a batch holds where data are sorted by class, beside a full shuffle, in every format.

Two tables. Small data sets on disk, streamed: classes counted in the batches that the source hands out. And the order
alone of 1,281,167 samples of 1,000 classes and 110 kB, batches of 1,024, as windows of 4 GiB give it for row groups of
several lengths; a queue of 65,536 is counted at the middle of the epoch. `neighbours` is the order that runs had
before: windows of 4,096 neighbours in the listing. `reads`: of each group in an epoch. `seconds`: of one epoch's order.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl.data.names import open_samples
from raysurl.data.rewriting import encoded
from raysurl.data.source import open_source
from raysurl.recipe import Data, yaml_argument
from raysurl.sampler import Plan, epoch_order, plan
from raysurl.windows import Windows, classes_in_a_shuffle, classes_in_batches, reads_of

WINDOW, BATCH, QUEUE = 2**32 // 110_000, 1024, 65_536


def main(arguments: list[str]) -> None:
    """`order [classes=20] [each=40] [batch_size=32] [window=200]`: of the data sets that are written."""
    given = {"classes": 20, "each": 40, "batch_size": 32, "window": 200}
    given |= {key: int(value) for key, value in (yaml_argument(a) for a in arguments)}
    formats(given["classes"], given["each"], given["batch_size"], given["window"])
    imagenet()


# -------------------------------------------------------------------- formats


def formats(classes: int, each: int, batch_size: int, window: int) -> None:
    labels = np.repeat(np.arange(classes), each)
    full = classes_in_a_shuffle(np.bincount(labels), len(labels), batch_size)
    print(
        f"{len(labels)} images of {classes} classes, sorted; batches of {batch_size}; a full shuffle {full:.2f} classes"
    )
    print(f"{'format':44} {'window':>7} {'classes':>8} {'share':>7}")
    small = {"data.window": window}
    rows: list[tuple[str, Callable[[Path, NDArray[np.int64]], dict[str, Any]], dict[str, int]]] = [
        ("folder, a file per sample", _folder, {}),
        ("torchvision:ImageFolder", _torchvision, {}),
        (".npz", _npz, {}),
        ("Parquet, row groups of 10, held whole", lambda p, y: _parquet(p, y, 10), {}),
        ("Parquet, row groups of 1", lambda p, y: _parquet(p, y, 1), small),
        ("Parquet, row groups of 5", lambda p, y: _parquet(p, y, 5), small),
        ("Parquet, row groups of 40", lambda p, y: _parquet(p, y, 40), small),
        (
            "Parquet, row groups of 40, data.reads=8",
            lambda p, y: _parquet(p, y, 40),
            small | {"data.reads": 8},
        ),
        ("Parquet, one row group of all", lambda p, y: _parquet(p, y, len(y)), small),
    ]
    for name, make, settings in rows:
        with tempfile.TemporaryDirectory() as folder:
            found = _counted(make(Path(folder), labels), settings, batch_size)
        held = settings.get("data.window", "–")
        print(f"{name:44} {held:>7} {found:8.2f} {found / full:7.1%}", flush=True)


def _counted(data: dict[str, Any], settings: dict[str, int], batch_size: int) -> float:
    """Mean number of classes over one epoch of batches."""
    changes = {key.removeprefix("data."): value for key, value in settings.items()}
    settled = Data(**{**data, **changes, "mode": "streaming"})
    samples = open_samples(settled, "train", 0)
    source = open_source(samples, settled)
    p: Plan = plan(source.readable, batch_size=batch_size, seed=0, windows=source.windows)
    assert source.labels is not None
    batches = source.images(p.requests(0, p.steps_per_epoch))
    return float(np.mean([len(np.unique(source.labels[request.index])) for request, _ in batches]))


def _images(count: int) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)
    return [encoded(image) for image in pixels]


def _folder(root: Path, labels: NDArray[np.int64]) -> dict[str, Any]:
    for i, (label, image) in enumerate(zip(labels.tolist(), _images(len(labels)), strict=True)):
        (root / f"{label:03}").mkdir(exist_ok=True)
        (root / f"{label:03}" / f"{i:05}.png").write_bytes(image)
    return {"name": "folder", "path": str(root)}


def _torchvision(root: Path, labels: NDArray[np.int64]) -> dict[str, Any]:
    return {**_folder(root, labels), "name": "torchvision:ImageFolder"}


def _npz(root: Path, labels: NDArray[np.int64]) -> dict[str, Any]:
    np.savez(root / "a.npz", image=np.zeros((len(labels), 4, 4, 3), np.uint8), label=labels)
    return {"name": "npz", "path": str(root / "a.npz")}


def _parquet(root: Path, labels: NDArray[np.int64], rows: int) -> dict[str, Any]:
    table = pa.table({"image": _images(len(labels)), "label": labels})
    pq.write_table(table, root / "a.parquet", row_group_size=rows)
    return {"name": "parquet", "path": str(root)}


# -------------------------------------------------------------------- ImageNet's size


def imagenet() -> None:
    counts = np.full(1000, 1281) + (np.arange(1000) < 167)
    labels = np.repeat(np.arange(1000), counts)
    n = len(labels)
    full = classes_in_a_shuffle(counts, n, BATCH)
    print(
        f"\n{n:,} samples of 1,000 classes, sorted; batches of {BATCH:,}; windows of {WINDOW:,}; {full:.0f} classes"
    )
    print(f"{'order':40} {'batch':>6} {'share':>7} {'queue':>6} {'seconds':>8}")
    orders: list[tuple[str, Callable[[], NDArray[np.int64]]]] = [
        ("neighbours, as before", lambda: epoch_order(n, 0, 0, 4096)),
        ("a sample alone (files, arrays)", lambda: epoch_order(n, 0, 0)),
    ]
    for rows in (10, 32, 64, 100, 256, 1000, 128_117):
        for asked in (1, None):
            windows = Windows(np.arange(n) // rows, WINDOW, asked)
            reads = asked or reads_of(windows, np.arange(n), BATCH)
            if asked or reads > 1:
                name = (
                    f"row groups of {rows:,}, {reads} read{'s' * (reads > 1)}{'' if asked else ' (default)'}"
                )
                orders.append((name, partial(plan(n, batch_size=BATCH, seed=0, windows=windows).order, 0)))
    for name, make in orders:
        since = time.perf_counter()
        order = make()
        seconds = time.perf_counter() - since
        found = classes_in_batches(order, labels, BATCH)
        queue = len(np.unique(labels[order[n // 2 : n // 2 + QUEUE]]))
        print(f"{name:40} {found:6.0f} {found / full:7.1%} {queue:6} {seconds:8.1f}", flush=True)
