"""What it costs to judge features: seconds and memory of protocols at the sizes of the papers.

Each part runs in a process of its own. Memory is over what the data take that a protocol is given; `pages` are those of
files that are mapped, which the system takes back where it needs room.

rates       a linear probe at ten learning rates together, beside one: 50,000 features of 512, ten classes. Goal: 2
features    embedding of images that are in memory, beside a bare loop of the same encoder over the same blocks, stacked
            beforehand and normalised by torch. Goal: .95
imagenet    a linear probe of ImageNet's size: 1,281,167 features of 2,048 in a mapped file (10 GB of the folder for
            temporary files), 1,000 classes, one epoch. Goal: 4 GiB
svm         the support vector machines of VOC07's size: 5,011 and 4,952 images of 2,048 features, 20 classes, 26 costs
            by cross-validation, on all images and on five draws of 4 … 64 of each class
retrieval   recall and mAP of 10,000 queries in a gallery of 50,000, 512 features
detection   the interval of COCO's precision: 5,000 test images of 80 classes, 20 detections each
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks._asked import asked_for, parts_of
from benchmarks._kept import FOLDER, Memory, Rows, keep, where
from torch import Tensor

from raysurl import streams
from raysurl.data.names import open_samples
from raysurl.data.source import open_source
from raysurl.embed import embed, room
from raysurl.encoder import encoder_of
from raysurl.evaluate import Features, coco_scores, linear, retrieval, svm
from raysurl.intervals import RESAMPLES
from raysurl.recipe import Evaluation, load_recipe
from raysurl.recipe.probes import PROBES
from raysurl.sampler import Request

FILE = FOLDER / "judging.json"
Given = dict[str, Any]


def main(arguments: list[str]) -> None:
    """`judging [parts=[rates, features, …]] [share=1] [runs=5] [threads=2] [device=cpu] [encoder=resnet18] [size=32]
    [out=FILE.json]`; share: of the samples. Rows of other parts, sizes and devices stay in the file."""
    given = asked_for(
        arguments,
        {"parts": list(PARTS), "share": 1.0, "runs": 5, "threads": 2, "device": "cpu", "encoder": "resnet18",
         "size": 32, "out": FILE},
    )  # fmt: skip
    parts = parts_of(given, list(PARTS))
    settings = {key: value for key, value in given.items() if key not in ("parts", "out")}
    for part in parts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measured, (part, settings))
        name = f"{part}, {given['encoder']} {given['size']} px" if part == "features" else part
        name += "" if given["device"] == "cpu" else f", {given['device']}"
        name += "" if given["share"] == 1 else f", {given['share']:g} of the samples"
        row |= {"part": part, "threads": given["threads"], "runs": given["runs"], "share": given["share"]}
        keep(Path(given["out"]), name, row, given["device"], page)
        print(f"{name}: {row}", flush=True)


def measured(part: str, given: Given) -> dict[str, Any]:
    torch.set_num_threads(int(given["threads"]))
    return PARTS[part](given)


def count(of: int, given: Given) -> int:
    return max(20, round(of * given["share"]))


def timed(call: Callable[[], Any], device: str = "cpu") -> float:
    since = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - since


# -------------------------------------------------------------------- linear probes


def rates(given: Given) -> dict[str, Any]:
    """Turns of one and of ten rates; a fifth of the epochs, which are all alike."""
    device, n = given["device"], count(50_000, given)
    features = torch.from_numpy(streams.numpy_stream(0, "rates").random((n, 512), np.float32)).to(device)
    labels = (torch.arange(n) % 10).to(device)
    several = tuple(0.01 * 2**i for i in range(10))
    probes = [PROBES["ressl"].model_copy(update={"lr": lrs, "epochs": 20}) for lrs in (several[:1], several)]

    def trained(of: int) -> Any:
        return linear.fit(lambda _: features, labels, probes[of], num_classes=10, seed=0)

    trained(1)
    took = [[timed(lambda of=of: trained(of), device) for of in (0, 1)] for _ in range(given["runs"])]  # type: ignore[misc]
    ratios = [ten / one for one, ten in took]
    one, ten = (statistics.median(column) for column in zip(*took, strict=True))
    return {"one": round(one, 3), "ten": round(ten, 3), "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(r, 3) for r in ratios]}  # fmt: skip


def imagenet(given: Given) -> dict[str, Any]:
    train, labels = mapped(count(1_281_167, given), 0)
    test, test_labels = mapped(count(50_000, given), 1)
    settings = Evaluation(probe="ressl_imagenet", linear_epochs=1, linear_augment="plain")
    with Memory() as held:
        features = Features(train, labels, test, test_labels, 1000)
        seconds = timed(lambda: list(linear.run(features, settings)))
    return {"samples": len(train), "GB": round(4 * train.numel() / 1e9, 2), "s": round(seconds, 1),
            "MiB": held.own, "pages": held.pages}  # fmt: skip


def mapped(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (n, 2048), noise about the mean of their class."""
    stream = streams.numpy_stream(seed, "mapped")
    means = streams.numpy_stream(0, "means").standard_normal((1000, 2048), np.float32)
    labels, rows = stream.integers(0, 1000, n), room(n, 2048)
    for start in range(0, n, 4096):
        of = labels[start : start + 4096]
        rows[start : start + 4096] = torch.from_numpy(
            means[of] + stream.standard_normal((len(of), 2048), np.float32)
        )
    return rows, torch.from_numpy(labels)


# -------------------------------------------------------------------- embedding


def features(given: Given) -> dict[str, Any]:
    """Turns of `embed`, as an evaluation calls it, and the bare loop."""
    device, size = torch.device(given["device"]), int(given["size"])
    n = count(4000 if device.type == "cpu" else 50_000, given)
    with tempfile.TemporaryDirectory() as folder:
        images = streams.numpy_stream(0, "images").integers(0, 256, (n, size, size, 3), np.uint8)
        np.savez(Path(folder) / "images.npz", images=images)
        recipe = load_recipe(
            ["data.name=npz", f"data.path={folder}/images.npz", f"encoder.name={given['encoder']}",
             f"views.size={size}", f"encoder.small_stem={str(size < 64).lower()}"]
        )  # fmt: skip
        samples = open_samples(recipe.data, "train", seed=0)
        source = open_source(samples, recipe.data)
    encoder, index, block = encoder_of(recipe).to(device).eval(), np.arange(n), recipe.eval.batch_size
    requests = [Request(0, i, index[i : i + block]) for i in range(0, n, block)]
    blocks = [torch.stack(list(images)) for _, images in source.images(requests)]
    mean, std = (
        torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (recipe.views.mean, recipe.views.std)
    )
    in_bf16 = device.type == "cuda" and recipe.precision(device) == "bf16"

    @torch.no_grad()
    def bare() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            return torch.cat(
                [encoder((b.to(device).float() / 255 - mean) / std).float().cpu() for b in blocks]
            )

    def ours() -> Tensor:
        return embed(encoder, source, recipe, device, index)

    difference = float((ours() - bare()).abs().max())
    took = [(timed(ours, device.type), timed(bare, device.type)) for _ in range(given["runs"])]
    paces = [round(n / statistics.median(column), 1) for column in zip(*took, strict=True)]
    ratios = [loop / own for own, loop in took]
    return {"images": n, "images/s": paces[0], "bare images/s": paces[1], "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(r, 3) for r in ratios], "largest difference": difference}  # fmt: skip


# -------------------------------------------------------------------- other protocols


def machines(given: Given) -> dict[str, Any]:
    stream = streams.numpy_stream(0, "voc")
    means = stream.standard_normal((20, 2048))
    parts = []
    for n in (count(5011, given), count(4952, given)):
        shown = stream.random((n, 20)) < 0.075
        rows = 0.5 * shown @ means + 2 * stream.standard_normal((n, 2048))
        parts.append((torch.from_numpy(np.maximum(rows, 0)).float(), torch.from_numpy(shown).to(torch.int8)))
    (train, tags), (test, truth) = parts
    unknown = [torch.full((len(rows),), -1) for rows in (train, test)]
    given_features = Features(train, unknown[0], test, unknown[1], 0, tags=(tags, truth))
    found: dict[str, Any] = {"images": len(train)}
    since = time.perf_counter()
    for name, value in svm.run(given_features, Evaluation()):
        found[name] = [round(float(value), 2), round(time.perf_counter() - since, 1)]
    return found | {"s": round(time.perf_counter() - since, 1)}


def ranked(given: Given) -> dict[str, Any]:
    stream, device = streams.numpy_stream(0, "ranked"), given["device"]
    n, q = count(50_000, given), count(10_000, given)
    rows = [torch.from_numpy(stream.standard_normal((k, 512), np.float32)).to(device) for k in (n, q)]
    labels = [torch.arange(k).to(device) % 10 for k in (n, q)]
    retrieval.retrieve(rows[0][:64], labels[0][:64], rows[1][:8], labels[1][:8], ks=(1,))
    with Memory() as held:
        seconds = timed(
            lambda: retrieval.retrieve(rows[0], labels[0], rows[1], labels[1], ks=(1, 5, 10)), device
        )
    return {"gallery": n, "queries": q, "s": round(seconds, 1), "MiB": held.own}


def detection(given: Given) -> dict[str, Any]:
    stream, images, classes = streams.numpy_stream(0, "detection"), count(5000, given), 80
    found = []
    for _ in range(classes):
        image = stream.integers(0, images, 20 * images // classes)
        right = stream.random((10, len(image))) < 0.5
        objects = np.bincount(stream.integers(0, images, 7 * images // classes), minlength=images)
        found.append(coco_scores.Matches(image, right, np.zeros_like(right), objects))
    taken, times = np.ones(images, np.int64), max(1, round(RESAMPLES * given["share"] / 50))
    one = timed(
        lambda: [
            coco_scores.precision(found, taken, at) for at in coco_scores.AT.values() for _ in range(times)
        ]
    )
    return {"images": images, "s": round(2 * one * RESAMPLES / times, 1)}


PARTS: dict[str, Callable[[Given], dict[str, Any]]] = {
    "rates": rates,
    "features": features,
    "imagenet": imagenet,
    "svm": machines,
    "retrieval": ranked,
    "detection": detection,
}

# -------------------------------------------------------------------- the page

SAID: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {
    "rates": lambda r: (f"{r['ten']} s for ten rates, {r['one']} s for one: {r['ratio']:.2f} ×", "2 ×"),
    "features": lambda r: (
        f"{r['images/s']:,.0f} images/s, a bare loop {r['bare images/s']:,.0f}: {r['ratio']:.2f}", ".95"),
    "imagenet": lambda r: (
        f"{r['samples']:,} features, {r['GB']} GB: {r['s']:,.0f} s an epoch, {r['MiB']:,.0f} MiB and at most"
        f" {r['pages']:,.0f} MiB of mapped pages", "4 GiB"),
    "svm": lambda r: (f"{r['images']:,} images, 26 costs, all images and 25 draws of a few: {r['s']:,.0f} s", ""),
    "retrieval": lambda r: (
        f"{r['queries']:,} queries in {r['gallery']:,}: {r['s']:,.0f} s, {r['MiB']:,.0f} MiB over the data", ""),
    "detection": lambda r: (f"{r['images']:,} images: {r['s']:,.0f} s for the intervals of boxes and masks", ""),
}  # fmt: skip


def page(rows: Rows) -> str:
    whole = [(name, *SAID[row["part"]](row)) for name, row in rows.items() if row["share"] == 1]
    lines = [
        "# What judging costs",
        "",
        "> " + "; ".join(f"{name}: {said}" for name, said, _ in whole) + ".",
        "",
    ]
    lines += ["| measured | found | goal | threads |", "|---|---|---|---|"]
    for name, row in rows.items():
        said, goal = SAID[row["part"]](row)
        lines.append(f"| {name} | {said} | {goal} | {row['threads']} |")
    lines += ["", f"`python pipelines/benchmark.py judging`, which says what is measured. {where(rows)}"]
    return "\n".join(lines) + "\n"
