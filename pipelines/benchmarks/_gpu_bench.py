"""What the rows of benchmarks/gpu.py stand on: a device, data in memory, and runs of the trainer on them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysurl import method
from raysurl.data.shards import Shard
from raysurl.data.source import ResidentSource, Source, SourceFacts
from raysurl.recipe import load_recipe
from raysurl.runtime import LocalRuntime
from raysurl.train import trainer

Row = dict[str, Any]

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
WARM, TIMED = 8, 30  # steps


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
        facts = SourceFacts(readable, (), random.integers(0, 10, samples), None, "resident")
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
