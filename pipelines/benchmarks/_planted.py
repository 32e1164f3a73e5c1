"""What `pipelines/benchmarks/curation.py` plants among images, and how much of it is found."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score

from raysurl import streams
from raysurl.curation import Embeddings, duplicates, leaks, outliers
from raysurl.curation.embedding import write_embeddings
from raysurl.curation.rows import read_embeddings

KINDS = ("exact", "jpeg", "cropped", "brightened")
THRESHOLDS = {
    True: (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6),
    False: (0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.9),
}


def embedded(run: str, folder: Path, file: str, **data: object) -> Embeddings:
    settings = {f"data.{key}": str(value) for key, value in data.items()}
    target = folder / f"{file}.parquet"
    write_embeddings({"run": run, **settings}, target, say=lambda _: None)
    return read_embeddings(str(target))


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
            copy.save(root / f"copy-{kind}-{of:06}.{ending}", quality=50)
    strange(root, given["mnist"], given["each"] // 2)
    of = embedded(given["run"], folder, "planted", name="folder", path=root, labels="none", limit="")
    names = np.array(of.table["path"].to_pylist())
    normal = np.char.startswith(names, "0")
    copies = np.char.startswith(names, "copy")
    return {
        "images": len(images),
        "each": given["each"],
        "duplicates": [
            copies_found(subset(of, normal | copies), t, w) for w, some in THRESHOLDS.items() for t in some
        ],
        "leaks": [
            leaks_found(of, names, normal, copies, t, w, given)
            for w, some in THRESHOLDS.items()
            for t in some
        ],
        "outliers": [
            outliers_found(of, names, copies, many, by, k, w)
            for many in (2, 10, given["each"])
            for w in (True, False)
            for by in ("knn", "lof")
            for k in (10, 50)
        ],
    }


def pictures(file: Path, count: int) -> list[Image.Image]:
    """Images of a Parquet file, drawn at random."""
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


def copies_found(of: Embeddings, threshold: float, whiten: bool) -> dict[str, Any]:
    found = duplicates(of, threshold, whiten=whiten)
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
    said |= {
        "whitened": whiten,
        "threshold": threshold,
        "precision": float(planted[grouped].mean()) if grouped.any() else 1.0,
    }
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
    whiten: bool,
    given: dict[str, Any],
) -> dict[str, Any]:
    """The first images, of which there are copies, and some more train; the copies and all others test."""
    first = normal & (names < f"{given['images'] // 2:06}")
    train, test = subset(of, first), subset(of, copies | (normal & ~first))
    is_copy = np.char.startswith(np.array(test.table["path"].to_pylist()), "copy")
    leaked = np.zeros(len(test), bool)
    leaked[leaks(train, test, threshold, whiten=whiten).leaked] = True
    return {
        "whitened": whiten,
        "threshold": threshold,
        "recall": float(leaked[is_copy].mean()),
        "precision": float(is_copy[leaked].mean()) if leaked.any() else 1.0,
        "leaked": int(leaked.sum()),
    }


def outliers_found(
    of: Embeddings, names: NDArray[Any], copies: NDArray[np.bool_], many: int, by: str, k: int, whiten: bool
) -> dict[str, Any]:
    """Of `many` planted ones, half of them noise."""
    odd = np.char.startswith(names, "strange")
    few = np.array([int(name.partition(".")[0].split("-")[-1]) < many // 2 for name in names[odd]])
    left_out = copies.copy()
    left_out[np.flatnonzero(odd)[~few]] = True
    odd = odd[~left_out]
    found = outliers(subset(of, ~left_out), k, by, whiten=whiten)  # type: ignore[arg-type]
    return {
        "by": by,
        "k": k,
        "whitened": whiten,
        "average precision": float(average_precision_score(odd, found.scores)),
        "among the first 5 %": float(odd[found.order[: len(odd) // 20]].sum() / odd.sum()),
        "planted": int(odd.sum()),
    }
