"""One table of what the flow costs on a CPU, before and after, each row beside its peer in one run, with its floor.

views      one view of 32 px of an image in memory, one thread, beside lightly's (benchmarks.views counts the floor)
jpeg       one of two views of 224 px of a JPEG of 500×375, one thread, beside lightly's; the floor is decoding
feed       SimCLR on CIFAR-10 with the small network under Ray as it comes, beside runtime=local with as many threads
           and beside lightly's modules behind torch's DataLoader (benchmarks.peers)
bf16       SimCLR with the small network and ReSSL with ResNet-18, runtime=local, train.precision=bf16 beside fp32,
           on a processor with AMX, without which it is slower
step       a step of ReSSL under Ray with one worker, beside the bare loop (benchmarks.step)
knn        kNN classification of 10,000 queries in 50,000 of 512 values, beside faiss (benchmarks.knn)
plane      MNIST to two dimensions, beside UMAP (benchmarks.dimension_reduction), with how well it keeps neighbours,
           and 10,000 new points placed
startup    from the shell to the first step: under Ray, with runtime=local, and what only says something

Cases of a part take turns; a number is the median of `runs`, and of plane one run. `before` is what the commit BEFORE
did, measured then on two cores of another make: what compares with today is its ratio to what stood beside it.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from benchmarks import dimension_reduction, knn, peers, step, views
from benchmarks._asked import asked_for, parts_of
from benchmarks._kept import FOLDER, Rows, keep, where

from raysurl.errors import InputError
from raysurl.recipe import Data

FILE = FOLDER / "speed.json"
BEFORE = "a959da0"
AS_ITS_RECIPE = ("encoder.name=resnet18", "encoder.small_stem=true", "views.size=32")
PIPELINES = Path(__file__).parents[1]
Given = dict[str, Any]
Found = dict[str, dict[str, Any]]
Train = Callable[[list[str], int], dict[str, float]]

# what is measured -> before, what stood beside it then, goal, floor
KNOWN = {
    "view of 32 px, µs": ("65.8", "lightly 790", "12 × lightly", "5"),
    "view of 224 px from a JPEG, ms": ("3.55", "lightly 7.67", "3 × lightly", "decoding alone, beside"),
    "SimCLR under Ray, images/s": ("645", "local 855, lightly 527", ".95 of local", "a bare loop: local"),
    "SimCLR in bf16, images/s": ("fp32", "", "", "fp32, beside"),
    "ReSSL with ResNet-18 in bf16, images/s": ("fp32", "", "", "fp32, beside"),
    "step under Ray, ms": ("1.07 × bare", "bare loop", "1.05 × bare", "the bare loop"),
    "kNN, s": ("7.2, 500 MB", "faiss 3.0, 97 MB", "faiss, 150 MB", "512 GFLOP: products alone, beside"),
    "MNIST to 2-D, s": ("270 to 400", "UMAP 25 compiled", "60 at .955, .955, 96", "12 TFLOP: 120 s at 100 GFLOP/s"),
    "10,000 new points, s": (".26", "UMAP 3.5", ".05", "4 GFLOP in fp64: .1"),
    "first step under Ray, s": ("–", "", "20", "importing torch, beside"),
    "first step, runtime=local, s": ("–", "", "4", "importing torch, beside"),
    "a recipe that is not there, s": ("–", "", "1", ""),
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """`speed data=FOLDER mnist=ROOT [parts=[views, jpeg, feed, bf16, step, knn, plane, startup]] [runs=3]
    [threads=2] [out=FILE.json]`; data: a folder with train.parquet and test.parquet of CIFAR-10.

    Rows of other parts stay."""
    given = asked_for(
        arguments,
        {"data": None, "mnist": None, "parts": list(PARTS), "runs": 3, "threads": 2, "out": FILE},
    )
    parts = parts_of(given, list(PARTS))
    for part, needs in (("feed", "data"), ("bf16", "data"), ("plane", "mnist")):
        if part in parts and not given[needs]:
            raise InputError(f"the part {part} needs {needs}=FOLDER")
    for part in parts:
        for name, found in PARTS[part](given).items():
            keep(Path(given["out"]), name, found, "cpu", page)
            print(f"{name}: {found}", flush=True)


def row(ours: float | str, beside: dict[str, Any], said: str = "") -> dict[str, Any]:
    return {"now": ours, "beside": beside, "said": said}


def of_views(given: Given) -> Found:
    torch.set_num_threads(1)
    rates = views.measure(views.small_cases(256), 2 * given["runs"] + 1)
    each = {name: round(1e6 / rate, 1) for name, rate in rates.items()}
    return {"view of 32 px, µs": row(each.pop("raysurl"), each)}


def of_jpeg(given: Given) -> Found:
    torch.set_num_threads(1)
    rates = views.measure(views.large_cases(32), given["runs"])
    each = {name: round(1e3 / rate, 2) for name, rate in rates.items()}
    return {"view of 224 px from a JPEG, ms": row(each.pop("raysurl"), each)}


def of_feed(given: Given) -> Found:
    settings = [
        *of_images(given, "simclr/cifar10"),
        *peers.METHODS["simclr"],
        "data.limit=10000",
        "train.epochs=3",
    ]
    ray = [s for s in settings if not s.startswith("runtime=")]
    local = [*settings, f"scale.threads={given['threads']}"]
    found = in_turns(
        given, {"Ray": (peers.ours, ray), "local": (peers.ours, local), "lightly": (peers.theirs, settings)}
    )
    return {"SimCLR under Ray, images/s": of_rates(found, "Ray", "local")}


def of_bf16(given: Given) -> Found:
    """Each run has its first ten steps in it, so that what it says of bf16 is rather too little."""
    cases = {
        "SimCLR in bf16, images/s": ["simclr/cifar10", *peers.METHODS["simclr"], "data.limit=10000"],
        "ReSSL with ResNet-18 in bf16, images/s": ["ressl/cifar10", *AS_ITS_RECIPE, "data.limit=768"],
    }
    rows = {}
    for name, (recipe, *changes) in cases.items():
        settings = [
            *of_images(given, recipe),
            *changes,
            "train.epochs=2",
            f"scale.threads={given['threads']}",
        ]
        found = in_turns(
            given, {p: (peers.ours, [*settings, f"train.precision={p}"]) for p in ("bf16", "fp32")}
        )
        rows[name] = of_rates(found, "bf16", "fp32")
    return rows


def of_images(given: Given, recipe: str) -> list[str]:
    folder = given["data"]
    return [
        f"recipe={recipe}", *peers.SETTINGS, f"data.path={folder}/train.parquet",
        f"data.eval_path={folder}/test.parquet",
    ]  # fmt: skip


def in_turns(given: Given, cases: dict[str, tuple[Train, list[str]]]) -> dict[str, list[float]]:
    """Images/s of each case, in processes of their own, one after the other, `runs` times."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(given["runs"]):
        for name, (train, settings) in cases.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                took = pool.submit(train, settings, int(given["threads"])).result()
            found[name].append(took["images_per_s"])
    return found


def of_rates(found: dict[str, list[float]], ours: str, to: str) -> dict[str, Any]:
    """A row of the medians, with what share `ours` is of `to`, run by run."""
    medians = {name: round(statistics.median(rates)) for name, rates in found.items()}
    return row(medians.pop(ours), medians, f"{spread(ratios(found[ours], found[to]))} of {to}")


def ratios(of: list[float], to: list[float]) -> list[float]:
    return [one / other for one, other in zip(of, to, strict=True)]


def of_step(given: Given) -> Found:
    seconds, _ = step.compared([], runs=given["runs"], steps=24, threads=1)
    bare, ray = seconds["bare loop"], seconds["ray, 1 worker"]
    beside = {"bare loop": round(1e3 * statistics.median(bare))}
    said = f"{spread(ratios(ray, bare))} of bare"
    return {"step under Ray, ms": row(round(1e3 * statistics.median(ray)), beside, said)}


def of_knn(given: Given) -> Found:
    shape = (50_000, 10_000, 512, 200, int(given["threads"]))
    cases = knn.compared(["raysurl", "faiss flat", "products alone"], shape, int(given["runs"]), "cpu")
    said = {name: f"{statistics.median(c['seconds']):.2f}, {c['MiB']} MiB" for name, c in cases.items()}
    return {"kNN, s": row(said.pop("raysurl"), said)}


def of_plane(given: Given) -> Found:
    data = Data(name="torchvision:MNIST", path=given["mnist"], limit=60_000, flatten="grey")
    (x, y), (new, new_y) = (dimension_reduction.load(data, split) for split in ("train", "eval"))
    fits, places, kept = {}, {}, {}
    for name in ("genurl", "umap"):
        model = dimension_reduction.METHODS[name](0, int(given["threads"]), {})
        trust, continuity, _, accuracy, fit, place = dimension_reduction.measure(
            name, model, 0, x, y, new, new_y, None
        )
        fits[name], places[name] = round(fit, 1), round(place, 3)
        kept[name] = f"{name} {trust:.3f}, {continuity:.3f}, {accuracy:.1f}"
    said = "trustworthiness, continuity, linear accuracy: " + "; ".join(kept.values())
    return {
        "MNIST to 2-D, s": row(fits.pop("genurl"), fits, said),
        "10,000 new points, s": row(places.pop("genurl"), places),
    }


def of_startup(given: Given) -> Found:
    settings = [
        "recipe=ressl/digits", "train.epochs=1", "eval.every_epochs=0", "eval.protocols=[]", "eval.baselines=false",
        "log.tensorboard=false", "log.every_steps=1",
    ]  # fmt: skip
    script = str(PIPELINES / "pretrain.py")
    found: dict[str, list[float]] = {}
    for _ in range(given["runs"]):
        took = {
            "import torch": ended([sys.executable, "-c", "import torch"]),
            "a recipe that is not there, s": ended([sys.executable, script, "recipe=none/such"]),
            "first step, runtime=local, s": first_step([script, *settings, "runtime=local"]),
            "first step under Ray, s": first_step([script, *settings]),
        }
        for name, seconds in took.items():
            found.setdefault(name, []).append(seconds)
    medians = {name: round(statistics.median(values), 2) for name, values in found.items()}
    beside = {"import torch": medians.pop("import torch")}
    return {name: row(value, {} if "recipe" in name else beside) for name, value in medians.items()}


PARTS: dict[str, Callable[[Given], Found]] = {
    "views": of_views, "jpeg": of_jpeg, "feed": of_feed, "bf16": of_bf16, "step": of_step, "knn": of_knn,
    "plane": of_plane, "startup": of_startup,
}  # fmt: skip


def ended(command: list[str]) -> float:
    since = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - since


def first_step(arguments: list[str]) -> float:
    """Seconds until the record of a run holds a step; the run is ended there."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "run" / "metrics.jsonl"
        since = time.perf_counter()
        run = subprocess.Popen(
            [sys.executable, *arguments, f"output={folder}/run"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"RAY_ADDRESS": "local"},
        )  # fmt: skip
        while not (record.exists() and "train/loss" in record.read_text()):
            if run.poll() is not None:
                raise InputError(f"the run ended before its first step: {' '.join(arguments)}")
            time.sleep(0.02)
        took = time.perf_counter() - since
        run.terminate()
        run.wait()
    return took


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def summary(rows: Rows) -> list[str]:
    """What stands first on the page; nothing before every part was measured."""
    if any(name not in rows for name in KNOWN):
        return []
    small, large, feed, few, many, ray, _, plane, _, start, local, _ = (rows[name] for name in KNOWN)
    of_lightly = [each["now"] / each["beside"]["lightly"] for each in (small, large, feed)]
    return [
        f"> A view of 32 px takes {of_lightly[0]:.2f} of lightly's time and one of 224 px from a JPEG"
        f" {of_lightly[1]:.2f}; SimCLR under Ray runs at {feed['said']} and at"
        f" {of_lightly[2]:.2f} of lightly behind a DataLoader; a step under Ray takes {ray['said']}."
        f" In bf16 SimCLR's images a second are {few['said']} and those of ReSSL with"
        f" ResNet-18 {many['said']}."
        f" MNIST to 2-D takes {plane['now']:.0f} s beside UMAP's {plane['beside']['umap']:.0f}"
        f" (goal: 60). The first step comes after {start['now']:.0f} s under Ray (goal: 20) and"
        f" {local['now']:.1f} s with runtime=local (goal: 4).",
        "",
    ]


def page(rows: Rows) -> str:
    lines = [
        "# Speed on a CPU, before and after", "", *summary(rows),
        f"| what | before (`{BEFORE}`) | beside it then | now | beside it, same run | | goal | floor |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, (before, then, goal, floor) in KNOWN.items():
        if name in rows:
            found = rows[name]
            beside = ", ".join(f"{peer} {value}" for peer, value in found["beside"].items())
            lines.append(
                f"| {name} | {before} | {then} | {found['now']} | {beside} | {found['said']} | {goal} | {floor} |"
            )
    said = "`python pipelines/benchmark.py speed data=FOLDER mnist=ROOT`, which says what is measured."
    return "\n".join([*lines, "", f"{said} {where(rows)}", ""])
