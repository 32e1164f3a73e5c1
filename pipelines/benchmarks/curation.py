"""What `raysurl duplicates`, `outliers`, `leaks` and `select` find of what was planted, and what an index costs.

`planted`: images of CIFAR-10 in a folder, and of `each` of them a copy of every kind: the same pixels in another format
(exact), encoded as JPEG of quality 75, cropped by two pixels on each side and resized, brightened by 15 %. Recall is
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score

from raysurl import streams
from raysurl.curation import Embeddings, build_index, duplicates, leaks, open_index, outliers, select
from raysurl.curation.embedding import write_embeddings
from raysurl.curation.indexing import nearest_exactly
from raysurl.curation.rows import StoredRows, read_embeddings, unit
from raysurl.data.names import open_samples
from raysurl.embed import Augmented, embed
from raysurl.encoder import load_encoder
from raysurl.errors import InputError
from raysurl.evaluate import knn_classify
from raysurl.recipe import yaml_argument
from raysurl.train import local
from raysurl.train.run_directory import commit, hardware
from raysurl.views import POLICIES

FILE = Path(__file__).parents[2] / "results" / "benchmarks" / "curation.json"
PARTS = ("planted", "select", "index")
KINDS = ("exact", "jpeg", "cropped", "brightened")
THRESHOLDS = (0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.9)


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
    asked = dict(yaml_argument(a) for a in arguments)
    if unknown := set(asked) - set(given):
        raise InputError(f"{', '.join(unknown)} is not a setting; there are {', '.join(given)}")
    given |= asked
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


def embedded(run: str, folder: Path, name: str, **data: object) -> Embeddings:
    settings = {f"data.{key}": str(value) for key, value in data.items()}
    target = folder / f"{name}.parquet"
    write_embeddings({"run": run, **settings}, target, say=lambda _: None)
    return read_embeddings(str(target))


# -------------------------------------------------------------------- planted


def planted(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    images = pictures(Path(given["data"]) / "train.parquet", given["images"])
    root = folder / "images"
    root.mkdir()
    for i, image in enumerate(images):
        image.save(root / f"{i:06}.png")
    for number, kind in enumerate(KINDS):
        for i in range(given["each"]):
            of = number * given["each"] + i
            copy, ending = changed(images[of], kind)
            copy.save(root / f"copy-{kind}-{of:06}.{ending}", quality=75)
    strange(root, given["mnist"], given["each"] // 2)
    of = embedded(given["run"], folder, "planted", name="folder", path=root, labels="none", limit="")
    names = np.array(of.table["path"].to_pylist())
    normal = np.char.startswith(names, "0")
    copies = np.char.startswith(names, "copy")
    return {
        "images": len(images),
        "each": given["each"],
        "duplicates": [copies_found(subset(of, normal | copies), t) for t in THRESHOLDS],
        "leaks": [leaks_found(of, names, normal, copies, t, given) for t in THRESHOLDS],
        "outliers": [
            outliers_found(subset(of, ~copies), by, k) for by in ("knn", "lof") for k in (1, 5, 10, 20, 50)
        ],
    }


def pictures(file: Path, count: int) -> list[Image.Image]:
    """Images of a Parquet file, drawn at random."""
    import io

    column = pq.read_table(file, columns=["image"])["image"]
    which = streams.numpy_stream(0, "planted").permutation(len(column))[:count]
    return [Image.open(io.BytesIO(column[int(i)].as_py()["bytes"])).convert("RGB") for i in which]


def changed(image: Image.Image, kind: str) -> tuple[Image.Image, str]:
    width, height = image.size
    if kind == "cropped":
        return image.crop((2, 2, width - 2, height - 2)).resize(
            (width, height), Image.Resampling.BICUBIC
        ), "png"
    if kind == "brightened":
        return image.point(lambda value: min(255, round(1.15 * value))), "png"
    return image, "bmp" if kind == "exact" else "jpg"


def strange(root: Path, mnist: str | None, count: int) -> None:
    noise = streams.numpy_stream(0, "noise")
    for i in range(count):
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(root / f"strange-noise-{i}.png")
    if mnist:
        from torchvision.datasets import MNIST

        digits = MNIST(mnist, train=False)
        for i in range(count):
            digits[i][0].convert("RGB").resize((32, 32)).save(root / f"strange-digit-{i}.png")


def subset(of: Embeddings, which: NDArray[np.bool_]) -> Embeddings:
    index = np.flatnonzero(which)
    return replace(of, rows=of.rows[index], table=of.table.take(pa.array(index)))


def copies_found(of: Embeddings, threshold: float) -> dict[str, Any]:
    found = duplicates(of, threshold)
    paths = of.table["path"].to_pylist()
    place = {path: i for i, path in enumerate(paths)}
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    planted = np.zeros(len(of), bool)
    for i, path in enumerate(paths):
        if path.startswith("copy-"):
            _, kind, number = path.partition(".")[0].split("-")
            original = place[f"{number}.png"]
            planted[[i, original]] = True
            right[kind].append(bool(found.group[i] >= 0 and found.group[i] == found.group[original]))
    grouped = found.group >= 0
    said: dict[str, Any] = {f"recall {kind}": float(np.mean(values)) for kind, values in right.items()}
    said |= {"threshold": threshold, "precision": float(planted[grouped].mean()) if grouped.any() else 1.0}
    said |= {
        "grouped": int(grouped.sum()),
        "largest group": int(np.bincount(found.group[grouped]).max(initial=0)),
    }
    return said


def leaks_found(
    of: Embeddings,
    names: NDArray[Any],
    normal: NDArray[np.bool_],
    copies: NDArray[np.bool_],
    threshold: float,
    given: dict[str, Any],
) -> dict[str, Any]:
    """The first images, of which there are copies, and some more train; the copies and all others test."""
    first = normal & (names < f"{given['images'] // 2:06}")
    train, test = subset(of, first), subset(of, copies | (normal & ~first))
    is_copy = np.char.startswith(np.array(test.table["path"].to_pylist()), "copy")
    leaked = np.zeros(len(test), bool)
    leaked[leaks(train, test, threshold).leaked] = True
    return {
        "threshold": threshold,
        "recall": float(leaked[is_copy].mean()),
        "precision": float(is_copy[leaked].mean()) if leaked.any() else 1.0,
        "leaked": int(leaked.sum()),
    }


def outliers_found(of: Embeddings, by: str, k: int) -> dict[str, Any]:
    found = outliers(of, k, by)  # type: ignore[arg-type]
    odd = np.char.startswith(np.array(of.table["path"].to_pylist()), "strange")
    return {
        "by": by,
        "k": k,
        "average precision": float(average_precision_score(odd, found.scores)),
        "of the first": float(odd[found.order[: odd.sum()]].mean()),
        "planted": int(odd.sum()),
    }


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
                which = torch.from_numpy(select(train, n, by, seed=seed))  # type: ignore[arg-type]
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
    assert samples is not None
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
