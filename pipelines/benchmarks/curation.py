"""What `raysurl duplicates`, `outliers`, `leaks` and `select` find of what was planted, and what an index costs.

`planted`: images of CIFAR-10 in a folder, and of `each` of them a copy of every kind: the same pixels in another format
(exact), encoded as JPEG of quality 50, cropped by two pixels on each side and resized, brightened by 15 %. Recall is
the share of the planted copies that are in a group with their original, precision the share of the images in groups
that are planted or the original of one; what CIFAR itself holds twice counts against it. Outliers are digits of MNIST
and noise among the images without copies: average precision, and the share of the first so many that are planted.
Leaks: the copies among as many other images as a test set.

`select`: accuracy of kNN (k = 5) of test images where only the chosen train images have labels, several seeds, beside a
random choice of as many.

`index`: augmented copies of images, embedded; built by `raysurl index`, then asked for one image at a time. Recall is
against exact search for the same queries, which are further copies that are not in the index; the peak is of the
process.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from benchmarks._asked import asked_for
from benchmarks._planted import embedded, planted
from numpy.typing import NDArray

from raysurl import streams
from raysurl.curation import build_index, open_index, select
from raysurl.curation.indexing import nearest_exactly
from raysurl.curation.rows import StoredRows, unit
from raysurl.data.names import open_samples
from raysurl.embed import Augmented, embed
from raysurl.encoder import load_encoder
from raysurl.errors import InputError
from raysurl.evaluate import knn_classify
from raysurl.train import local
from raysurl.train.run_directory import commit, hardware
from raysurl.views import POLICIES

FILE = Path(__file__).parents[2] / "results" / "benchmarks" / "curation.json"
PARTS = ("planted", "select", "index")


def main(arguments: list[str]) -> None:
    """`curation run=DIR data=ROOT mnist=ROOT [part=planted|select|index] [images=2000] [each=50] [seeds=5]
    [train=10000] [test=2000] [rows=1000000] [queries=1000]`; data: a folder with train.parquet and test.parquet."""
    given: dict[str, Any] = {
        "part": "all",
        "run": None,
        "data": None,
        "mnist": None,
        "images": 2000,
        "each": 50,
        "seeds": 5,
        "train": 10_000,
        "test": 2000,
        "rows": 1_000_000,
        "queries": 1000,
    }
    given = asked_for(arguments, given)
    if not given["run"] or not given["data"]:
        raise InputError("name run=DIR, which embeds, and data=ROOT with train.parquet and test.parquet")
    parts = PARTS if given["part"] == "all" else (given["part"],)
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            found = MEASURES[part](given, Path(folder))
        found |= {"commit": commit(), "hardware": hardware(torch.device("cpu"))}
        stored = json.loads(FILE.read_text()) if FILE.is_file() else {}
        FILE.write_text(json.dumps({**stored, part: found}, indent=1, sort_keys=True) + "\n")
        print(json.dumps({part: found}, indent=1), flush=True)


# -------------------------------------------------------------------- subsets


def chosen(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    data = Path(given["data"])
    train, test = (
        embedded(given["run"], folder, part, name="parquet", path=data / f"{part}.parquet", limit=given[part])
        for part in ("train", "test")
    )
    labels, truth = (torch.from_numpy(e.table["label"].to_numpy().copy()) for e in (train, test))
    bank, queries = torch.from_numpy(train.rows), torch.from_numpy(test.rows)
    found: dict[str, Any] = {"train": len(train), "test": len(test), "accuracy": {}}
    for n in (100, 500):
        for by in ("random", "typicality", "kcentre", "density"):
            found["accuracy"][f"{by} {n}"] = scores = []
            for seed in range(given["seeds"]):
                which = torch.from_numpy(select(train, n, by, seed=seed))
                said = knn_classify(
                    bank[which], labels[which], queries, k=5, num_classes=int(labels.max()) + 1
                )
                scores.append(round(100 * float((said == truth).double().mean()), 2))
            print(n, by, scores, flush=True)
    return found


# -------------------------------------------------------------------- index


def indexed(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    import faiss

    file, queries = folder / "e.parquet", augmented(given, folder / "e.parquet")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    since = time.perf_counter()
    built = build_index(str(file), folder / "index", "auto")
    seconds = time.perf_counter() - since
    index = open_index(str(folder / "index"))
    found, times = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(index.search(query[None], 10)[1][0])
        times.append(1000 * (time.perf_counter() - start))
    truth = exact(StoredRows(str(file)), queries)
    recall = np.mean([len({*a.tolist()} & {*b.tolist()}) / 10 for a, b in zip(found, truth, strict=True)])
    p50, p99 = np.percentile(times, [50, 99])
    return {
        "kind": built.kind,
        "rows": built.rows,
        "dim": built.dim,
        "cells": built.cells,
        "visited": built.visited,
        "stated recall": built.recall,
        "recall": float(recall),
        "queries": len(queries),
        "build s": seconds,
        "p50 ms": float(p50),
        "p99 ms": float(p99),
        "threads": faiss.omp_get_max_threads(),
        "before GB": before / 1e6,
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "index GB": (folder / "index" / "index.faiss").stat().st_size / 1e9,
    }


def augmented(given: dict[str, Any], file: Path) -> NDArray[np.float32]:
    """Writes embeddings of augmented copies, `rows` in all, and returns `queries` further ones."""
    path = Path(given["data"]) / "train.parquet"
    found = load_encoder(given["run"], {"data.name": "parquet", "data.path": str(path), "data.limit": ""})
    samples = open_samples(found.recipe.data, "train", seed=0, depth=found.depth)
    source, _ = local.open_sources(found.recipe, samples, None)
    cpu, count, writer, epoch = torch.device("cpu"), 0, None, 0
    while count < given["rows"]:
        which = np.arange(min(len(samples), given["rows"] - count))
        view = Augmented(POLICIES["contrastive"], epoch)
        rows = embed(found.encoder, source, found.recipe, cpu, which, view).numpy()
        names = [f"{i} {epoch}" for i in which]
        flat = pa.FixedSizeListArray.from_arrays(rows.ravel(), rows.shape[1])
        table = pa.table({"name": names, "path": names, "row": which, "label": which, "embedding": flat})
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table, row_group_size=16_384)
        count, epoch = count + len(which), epoch + 1
        print(f"{count:,} rows", flush=True)
    assert writer is not None
    writer.close()
    which = np.sort(streams.numpy_stream(0, "queries").permutation(len(samples))[: given["queries"]])
    view = Augmented(POLICIES["contrastive"], epoch)
    return unit(embed(found.encoder, source, found.recipe, cpu, which, view).numpy(), 0, "queries")


def exact(rows: StoredRows, queries: NDArray[np.float32]) -> NDArray[np.int64]:
    return nearest_exactly(rows, queries, 10)[1]


MEASURES = {"planted": planted, "select": chosen, "index": indexed}
