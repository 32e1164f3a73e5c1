"""Rows of benchmarks/gpu.py that time optimizer steps."""

from __future__ import annotations

import time
from typing import Any

import torch
from benchmarks._gpu_bench import WARM, Bench, Row, follow, start
from torch.utils.flop_counter import FlopCounterMode

from raysurl.train import trainer
from raysurl.train.step import RecordedStep, Step


def steps(name: str, *changes: str, size: int = 32, samples: int = 20480, refreshes: bool = False) -> Any:
    """A row of optimizer steps of a method."""

    def measure(bench: Bench) -> Row:
        run = start(bench, name, changes, bench.source(size, samples))
        if refreshes:
            trainer.refresh_memory(run)
        began = time.perf_counter()
        follow(run, 2 if bench.tiny else WARM)
        bench.sync()
        settings = [f"recipe={name}/cifar10", *changes]
        row: Row = {"settings": settings, "warm_s": time.perf_counter() - began}
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
    pushed = step.result(outputs, None).push
    if run.memory and pushed:
        row["memory_ms"] = 1e3 * bench.seconds(lambda: run.memory.mirror.push(*pushed), 5)  # type: ignore[union-attr]
    return row
