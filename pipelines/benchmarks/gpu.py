"""A step on one GPU: images/s, what the host and the device spend on it, and the peers, in order of worth.

Every row is a run of the trainer (runtime=local, data in memory, no network) at the shapes of a recipe, its steps timed
as they follow each other: `host_ms` until the host has started them, `step_ms` until the device is done, then views and
step each by itself on the device. `share` is what of the measured bf16 matrix rate the step's convolutions and matrix
products reach. JSON is written after each row, so that a call that is cut off keeps what it has. On a CPU the same rows
run at tiny sizes, which says that they run and nothing else; nothing is recorded there, and what is eager runs once.

The floor. ReSSL on CIFAR-10 is 4.4 GFLOP an image (student forward and backward, teacher forward): 10^7 images are
45 PFLOP. Its views are 2 × 12 kB written an image.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks._gpu_bench import Bench, Row, matrix_rate
from benchmarks._gpu_peers import bare_loop, fed_by_loader, probes, views
from benchmarks._gpu_steps import steps

from raysurl import method
from raysurl.recipe import load_recipe, yaml_argument
from raysurl.runtime import default_device

FIVE = ("rcl", "superand", "mvmr", "genurl")  # besides ressl, which is measured in every way
FIRST = ("ressl", "simclr", *FIVE)
IMAGENET = ("encoder.small_stem=false", "encoder.name=resnet50", "views.size=224")


def main(arguments: list[str]) -> None:
    """`gpu [seconds=200] [out=gpu.json] [only=TEXT,…] [tiny=false]`; rows are in order of worth until time is up."""
    given = dict(yaml_argument(a) for a in arguments)
    device = default_device()
    seconds, out = float(given.get("seconds", 200)), Path(str(given.get("out", "gpu.json")))
    tiny, only = bool(given.get("tiny", device.type != "cuda")), str(given.get("only", "")).split(",")
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, tiny, Path(folder))
        bench = replace(bench, peak=matrix_rate(bench))
        header = {
            "device": _name(device),
            "torch": torch.__version__,
            "bf16_tflops": bench.peak / 1e12,
            "tiny": tiny,
        }
        for name, measure in plan():
            if time.monotonic() - began > seconds:
                print(f"{seconds:.0f} s are up before: {name}", flush=True)
                break
            if not any(text in name for text in only) or (device.type == "cpu" and name.endswith(" eager")):
                continue
            row = {"row": name, **_measured(measure, bench)}
            rows.append(row)
            _show(row)
            out.write_text(json.dumps({**header, "rows": rows}, indent=1))


def plan() -> list[tuple[str, Callable[[Bench], Row]]]:
    """Rows in order of worth."""
    eager, compiled = ("train.cuda_graph=false",), ("train.compile=true",)
    large = ("train.batch_size=1024",)
    rows: list[tuple[str, Callable[[Bench], Row]]] = [
        ("ressl recorded", steps("ressl")),
        ("ressl eager", steps("ressl", *eager)),
        ("ressl B=1024 recorded", steps("ressl", *large)),
        ("simclr recorded", steps("simclr")),
        *((f"{name} recorded", steps(name)) for name in FIVE),
        ("ressl fed by torchvision and DataLoader", fed_by_loader),
        ("ressl compiled and recorded", steps("ressl", *compiled)),
        ("views/s", views),
        ("ressl resnet50 224 px recorded", steps("ressl", *IMAGENET, size=256, samples=2048)),
        ("bare loop resnet50 224 px", bare_loop),
        ("ressl resnet50 224 px eager", steps("ressl", *IMAGENET, *eager, size=256, samples=2048)),
        ("rcl resnet50 224 px recorded", steps("rcl", *IMAGENET, size=256, samples=2048)),
        ("knn and probes", probes),
        ("ressl B=1024 compiled and recorded", steps("ressl", *large, *compiled)),
        ("ressl strong views", steps("ressl", "views.policies={student_1: strong}")),
    ]
    rest = [n for n in method.available() if n not in FIRST and not _taught(n)]
    rows += [(f"{name} recorded", steps(name)) for name in rest]
    rows += [(f"{name} eager", steps(name, *eager)) for name in ("simclr", *FIVE, *rest)]
    return [*rows, ("rcl with clusters", steps("rcl", "method.warmup_epochs=0", refreshes=True))]


def _measured(measure: Callable[[Bench], Row], bench: Bench) -> Row:
    began = time.perf_counter()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        row = measure(bench)
    except Exception as error:  # the rows after it are still worth having
        row = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.compiler.reset()
    return {**row, "row_s": time.perf_counter() - began}


def _taught(name: str) -> bool:
    """Whether it needs a network's weights, which are not at hand here."""
    return load_recipe([f"recipe={name}/cifar10"]).method.learns_from() in ("any", "network")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"


def _show(row: Row) -> None:
    numbers = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "row")
    print(f"{row['row']}: {', '.join(numbers)}", flush=True)
