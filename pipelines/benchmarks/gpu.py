"""A step on one GPU: images/s, what the host and the device spend on it, and the peers, in order of worth.

Every row is a run of the trainer (runtime=local, data in memory, no network) at the shapes of a recipe, its steps timed
as they follow each other: `host_ms` until the host has started them, `step_ms` until the device is done, then views and
step each by itself on the device. `share` is what of the measured bf16 matrix rate the step's convolutions and matrix
products reach. JSON is written after each row, so that a call that is cut off keeps what it has. On a CPU the same rows
run at tiny sizes, which says that they run and nothing else.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raysurl import method, trainer
from raysurl.data.shards import Shard
from raysurl.data.source import Facts, ResidentSource, Source
from raysurl.evaluate import Features, evaluate
from raysurl.recipe import load_recipe, parse_override
from raysurl.runtime import LocalRuntime, default_device
from raysurl.step import RecordedStep, Step
from raysurl.views import POLICIES, draw
from raysurl.views.fixed import FixedView

QUIET = (
    "runtime=local", "eval.baselines=false", "eval.every_epochs=0", "log.tensorboard=false", "train.epochs=200",
    "checkpoint.every_epochs=0",
)  # fmt: skip
TINY = ("encoder.name=convnet", "encoder.small_stem=false", "encoder.sobel=false", "encoder.channels=[8, 16]",
        "train.batch_size=16", "views.size=8")  # fmt: skip
SMALL = {
    "hidden": 16,
    "predictor_hidden": 16,
    "dim": 8,
    "queue_size": 48,
    "prototypes": 8,
    "projector": [16, 8],
}
FIVE = ("rcl", "superand", "mvmr", "genurl")  # besides ressl, which is measured in every way
WARM, TIMED = 8, 30  # steps
IMAGENET = ("encoder.small_stem=false", "encoder.name=resnet50", "views.size=224")


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    device: torch.device
    tiny: bool
    folder: Path
    peak: float = 0.0  # bf16 operations a second, measured

    @property
    def timed(self) -> int:
        return 2 if self.tiny else TIMED

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def source(self, size: int, samples: int) -> Source:
        """Random images with labels, in memory."""
        size, samples = (12, 96) if self.tiny else (size, samples)
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (samples, 3, size, size), np.uint8)
        readable = np.ones(samples, bool)
        facts = Facts(readable, (), random.integers(0, 10, samples), None, "resident")
        return ResidentSource([Shard(pixels)], facts)

    def seconds(self, work: Callable[[], Any], times: int) -> float:
        """Of one call, by the clock, until the device is done."""
        work()
        self.sync()
        began = time.perf_counter()
        for _ in range(times):
            work()
        self.sync()
        return (time.perf_counter() - began) / times


Row = dict[str, Any]


def main(arguments: list[str]) -> None:
    """`gpu [seconds=200] [out=gpu.json] [only=TEXT] [tiny=false]`; rows are in order of worth until time is up."""
    given = dict(parse_override(a) for a in arguments)
    device = default_device()
    seconds, out = float(given.get("seconds", 200)), Path(str(given.get("out", "gpu.json")))
    tiny, only = bool(given.get("tiny", device.type != "cuda")), str(given.get("only", ""))
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
            if only not in name:
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
        ("ressl resnet50 224 px eager", steps("ressl", *IMAGENET, *eager, size=256, samples=2048)),
        ("rcl resnet50 224 px recorded", steps("rcl", *IMAGENET, size=256, samples=2048)),
        ("knn and probes", probes),
        ("ressl B=1024 compiled and recorded", steps("ressl", *large, *compiled)),
        ("ressl strong views", steps("ressl", "views.policies={student_1: strong}")),
    ]
    rest = [n for n in method.available() if n not in (*FIVE, "ressl", "simclr") and not _taught(n)]
    rows += [(f"{name} recorded", steps(name)) for name in rest]
    rows += [(f"{name} eager", steps(name, *eager)) for name in ("simclr", *FIVE, *rest)]
    return [*rows, ("rcl with clusters", steps("rcl", "method.warmup_epochs=0", refreshes=True))]


# -------------------------------------------------------------------- rows


def steps(name: str, *changes: str, size: int = 32, samples: int = 20480, refreshes: bool = False) -> Any:
    """A row of optimizer steps of a method."""

    def measure(bench: Bench) -> Row:
        run = start(bench, name, changes, bench.source(size, samples))
        if refreshes:
            trainer.refresh_memory(run)
        began = time.perf_counter()
        follow(run, 2 if bench.tiny else WARM)
        bench.sync()
        row: Row = {"warm_s": time.perf_counter() - began}
        began, first = time.perf_counter(), run.step
        waited = follow(run, bench.timed)
        host = time.perf_counter() - began
        bench.sync()
        total, count = time.perf_counter() - began, run.step - first
        batch = run.recipe.train.batch_size
        row |= {
            "images_per_s": batch * count / total,
            "step_ms": 1e3 * total / count,
            "host_ms": 1e3 * host / count,
            "waiting": waited / total,
        }
        row |= alone(bench, run)
        if bench.device.type == "cuda":
            row["gib"] = torch.cuda.max_memory_allocated() / 2**30
        return row

    return measure


def alone(bench: Bench, run: trainer.Run) -> Row:
    """Views and step each by itself, and the share of the matrix rate; `recorded`, whether that came about."""
    (((loaded,), _),) = run.loader.steps(run.step, run.step + 1)
    batch = run.loader.to_batch(loaded)
    part = (batch, run.memory.snapshot(loaded[0].rows) if run.memory else {})
    row: Row = {"views_alone_ms": 1e3 * bench.seconds(lambda: run.loader.to_batch(loaded), bench.timed)}
    one = run.one_step
    step = one.step if isinstance(one, RecordedStep) else one
    row["step_alone_ms"] = 1e3 * bench.seconds(lambda: one([part], 1, run.progress, 0.01), bench.timed)
    recorded = isinstance(one, RecordedStep) and one._graph is not None
    row["recorded"] = recorded
    if not recorded:
        row |= pieces(bench, step, part, run)
    with FlopCounterMode(display=False) as counted:
        step.gradients([part], 1, run.progress)
    run.optimizer.zero_grad()
    row["gflop_per_image"] = counted.get_total_flops() / 1e9 / run.recipe.train.batch_size
    row["share"] = counted.get_total_flops() / (row["step_alone_ms"] / 1e3) / bench.peak
    return row


def pieces(bench: Bench, step: Step, part: Any, run: trainer.Run) -> Row:
    """An eager step's parts, each until the device is done."""
    outputs: list[Any] = []

    def forward_backward() -> None:
        outputs[:] = step.gradients([part], 1, run.progress)

    row = {"forward_backward_ms": 1e3 * bench.seconds(forward_backward, 5)}
    row["optimizer_ms"] = 1e3 * bench.seconds(lambda: step.optimizer.step(), 5)
    step.optimizer.zero_grad()
    row["ema_ms"] = 1e3 * bench.seconds(lambda: step.method.after_step(run.progress), 5)
    pushed = step.result(outputs).push
    if run.memory and pushed:
        row["memory_ms"] = 1e3 * bench.seconds(lambda: run.memory.mirror.push(*pushed), 5)  # type: ignore[union-attr]
    return row


def fed_by_loader(bench: Bench) -> Row:
    """The same step fed by torchvision's transforms from a DataLoader with as many workers as cores."""
    from torchvision.transforms import v2

    source = bench.source(32, 20480)
    assert isinstance(source, ResidentSource)
    run = start(bench, "ressl", (), source)
    size, batch_size = run.recipe.views.size, run.recipe.train.batch_size
    normal = [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(run.recipe.views.mean, run.recipe.views.std),
    ]
    crop = [v2.RandomResizedCrop(size, scale=(0.2, 1), antialias=True), v2.RandomHorizontalFlip()]
    jitter = [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2)]
    blur = [v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], 0.5)]
    weak, strong = v2.Compose([*crop, *normal]), v2.Compose([*crop, *jitter, *blur, *normal])
    pixels = torch.from_numpy(source.gather.shards[0].pixels)
    workers = 0 if bench.tiny else os.cpu_count() or 1
    loader = torch.utils.data.DataLoader(
        _Pairs(pixels, strong, weak), batch_size, shuffle=True, drop_last=True, num_workers=workers,
        pin_memory=bench.device.type == "cuda",
    )  # fmt: skip
    done, began = 0, 0.0
    for i, (index, student, teacher) in enumerate(loader):
        if i == 2:
            bench.sync()
            began = time.perf_counter()
        named = (("student_1", student), ("teacher_1", teacher))
        views = {name: x.to(bench.device, non_blocking=True) for name, x in named}
        batch = method.Batch(index.to(bench.device, non_blocking=True), views)
        assert run.memory is not None
        stepped = run.one_step([(batch, run.memory.snapshot(slice(0, batch_size)))], 1, run.progress, 0.01)
        assert stepped.push is not None
        run.memory.push(*stepped.push)
        done = i - 1 if i >= 2 else 0
        if done and time.perf_counter() - began > 8:
            break
    bench.sync()
    return {"images_per_s": done * batch_size / max(time.perf_counter() - began, 1e-9), "workers": workers}


class _Pairs(torch.utils.data.Dataset[Any]):
    def __init__(self, pixels: Tensor, strong: Any, weak: Any) -> None:
        self.pixels, self.strong, self.weak = pixels, strong, weak

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[int, Tensor, Tensor]:
        return i, self.strong(self.pixels[i]), self.weak(self.pixels[i])


def views(bench: Bench) -> Row:
    """Views of the policy `contrastive` per second on the device: ours recorded or not, kornia's, torchvision's."""
    from torchvision.transforms import v2

    count, size = (16, 12) if bench.tiny else (256, 32)
    recipe = load_recipe(["recipe=ressl/cifar10", *QUIET])
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=bench.device)
    policy, s = POLICIES["contrastive"], recipe.views
    view = FixedView(policy, size=size, mean=s.mean, std=s.std, source=(size, size))
    draws = draw(policy, count, seed=0, step=0, view="v")
    table = torch.from_numpy(view.rows(draws)).to(bench.device)
    out = torch.empty(count, 3, size, size, device=bench.device)
    found: Row = {"ours": count / bench.seconds(lambda: view(images, table, out), bench.timed)}
    if bench.device.type == "cuda":
        from raysurl.recording import CudaGraph

        graph = CudaGraph()
        graph.aside(lambda: view(images, table, out))
        graph.record(lambda: view(images, table, out))
        found["ours recorded"] = count / bench.seconds(graph.replay, bench.timed)
    transform = v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.2, 1), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], 0.5), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(s.mean, s.std),
    ])  # fmt: skip
    found["torchvision, one by one"] = 16 / bench.seconds(lambda: [transform(x) for x in images[:16]], 2)
    try:
        import kornia.augmentation as K

        theirs = torch.nn.Sequential(
            K.RandomResizedCrop((size, size), scale=(0.2, 1.0)), K.RandomHorizontalFlip(),
            K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.5), K.Normalize(torch.tensor(s.mean), torch.tensor(s.std)),
        ).to(bench.device)  # fmt: skip
        floats = images.float() / 255
        found["kornia"] = count / bench.seconds(lambda: theirs(floats), 5)
    except Exception as error:  # a peer that is absent or fails takes no row of ours with it
        found["kornia"] = str(error).splitlines()[0][:80]
    return {f"{name}, views/s": value for name, value in found.items()}


def probes(bench: Bench) -> Row:
    """Seconds of kNN and probes on 50,000 × 10,000 features of 512 values."""
    n, q, d = (200, 50, 16) if bench.tiny else (50_000, 10_000, 512)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, d, generator=generator)
    labels = [torch.randint(0, 10, (count,), generator=generator) for count in (n, q)]
    rows = [centres[y] + 4 * torch.randn(len(y), d, generator=generator) for y in labels]
    train, train_labels, test, test_labels = (
        x.to(bench.device) for x in (rows[0], labels[0], rows[1], labels[1])
    )
    features = Features(train, train_labels, test, test_labels, 10)
    settings = load_recipe(
        ["recipe=ressl/cifar10", "eval.linear_epochs=" + ("1" if bench.tiny else "10")]
    ).eval
    found: Row = {}
    for protocol in ("knn", "linear", "lbfgs"):
        bench.sync()
        began = time.perf_counter()
        evaluate(features, settings, protocols=[protocol])
        bench.sync()
        found[f"{protocol}_s"] = time.perf_counter() - began
    return found


# -------------------------------------------------------------------- a run


def start(bench: Bench, name: str, changes: tuple[str, ...], source: Source) -> trainer.Run:
    run_dir = Path(tempfile.mkdtemp(dir=bench.folder))
    recipe = load_recipe(_settings(bench, name, changes))
    run = trainer.start(recipe, LocalRuntime(bench.device), source, None, run_dir)
    run.model.train()
    return run


def _settings(bench: Bench, name: str, changes: tuple[str, ...]) -> list[str]:
    base = [f"recipe={name}/cifar10", *QUIET]
    if bench.tiny:
        config = method.load(name).Config.model_fields
        small = [f"method.{key}={value}" for key, value in SMALL.items() if key in config]
        kept = [
            c
            for c in changes
            if not c.startswith(("encoder.", "train.batch_size", "views.size", "train.compile"))
        ]
        return [*base, *TINY, *small, *kept]
    return [*base, *changes]


def follow(run: trainer.Run, count: int) -> float:
    """The next `count` steps as the trainer takes them; seconds spent waiting for data."""
    waited, left = 0.0, count
    while left:
        within = min(left, run.plan.steps_per_epoch)
        for micro_batches, seconds in run.loader.steps(run.step, run.step + within):
            trainer.train_step(run, micro_batches)
            run.step += 1
            waited += seconds
        left -= within
    return waited


def matrix_rate(bench: Bench) -> float:
    """Operations a second of a bf16 matrix product."""
    n = 256 if bench.tiny else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / bench.seconds(lambda: a @ b, 3 if bench.tiny else 20)


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
    cls = method.load(name)
    return name != "genurl" and cls.takes_teacher(cls.Config()) != "no"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"


def _show(row: Row) -> None:
    numbers = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "row")
    print(f"{row['row']}: {', '.join(numbers)}", flush=True)
