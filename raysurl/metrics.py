"""The record of a run: `metrics.jsonl`, a line per step, evaluation or event, and TensorBoard beside it.

Written by rank 0. Step values stay on the device until a block of steps is full; one transfer and one collective
then serve the whole block, and a non-finite value is found before anything is saved that contains it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl import distributed
from raysurl.errors import RunError

EVERY_S = 5.0  # between two notes on how far reading the data is
TAIL = 1 << 16  # bytes at the end of metrics.jsonl that hold its latest step


class Record:
    """Append-only `metrics.jsonl` plus optional TensorBoard, W&B and MLflow writers, which a thread serves in order."""

    def __init__(
        self, run_dir: Path, *, start_step: int, sinks: list[Callable[[int, dict[str, float]], None]]
    ) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.sinks = sinks
        drop_from(self.path, start_step)
        self._file = self.path.open("a", buffering=1)
        self._thread = ThreadPoolExecutor(1, "record")
        self._last: Future[None] | None = None

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        if self.sinks:
            if self._last and self._last.done():
                self._last.result()  # an error of the thread
            self._last = self._thread.submit(self._tell, step, numbers)

    def _tell(self, step: int, numbers: dict[str, float]) -> None:
        for sink in self.sinks:
            sink(step, numbers)

    def flush(self) -> None:
        """Wait for the writers."""
        if self._last:
            self._last.result()

    def event(self, step: int, text: str, **values: Any) -> None:
        self._file.write(json.dumps({"step": step, "event": text, "time": time.time(), **values}) + "\n")


def decoding_progress(run_dir: Path) -> Callable[[int, int], None]:
    """A callback (samples done, of) that leaves an event now and then, before the trainer has opened the record."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > EVERY_S:
            last = time.monotonic()
            line = {"step": 0, "event": f"reading data: {done:,} of {total:,} samples", "time": time.time()}
            with (run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    return report


def note(run_dir: Path, sentences: Sequence[str]) -> None:
    """Leave events before the trainer has opened the record."""
    with (run_dir / "metrics.jsonl").open("a") as file:
        for text in sentences:
            file.write(json.dumps({"step": 0, "event": text, "time": time.time()}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; the last one may have been cut by a kill."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def latest_step(path: Path) -> dict[str, float]:
    """The last step line of a metrics file, numbers only."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        lines = file.read().splitlines()
    for text in reversed(lines):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "train/loss" in line:
            return {k: v for k, v in line.items() if isinstance(v, int | float)}
    return {}


def drop_from(path: Path, step: int) -> None:
    """Remove the step lines that a run resumed at `step` will write again, and a last line that a kill cut short."""
    lines = read(path)
    kept = [line for line in lines if line["step"] < step or "event" in line or _is_evaluation(line, step)]
    if not path.exists() or (len(kept) == len(lines) and path.read_bytes().endswith(b"\n")):
        return
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(partial, path)


def _is_evaluation(line: dict[str, Any], step: int) -> bool:
    """An evaluation is written at the step that comes next, so the one at `step` itself is done."""
    return line["step"] == step and "train/loss" not in line


class StepBlock:
    """Collects the logs of up to `size` steps on the device; `flush` averages them over ranks and writes them."""

    def __init__(self, size: int, record: Record | None, batch_size: int) -> None:
        self.size, self.record, self.batch_size = size, record, batch_size
        self._steps: list[tuple[int, float, float]] = []  # step, epoch, lr
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self.begin()

    def add(self, step: int, epoch: float, lr: float, logs: dict[str, Tensor], waited: float) -> None:
        names = sorted(logs)
        if names != self._names:  # a loss term came or went
            self.flush()
            self._names = names
        self._steps.append((step, epoch, lr))
        self._rows.append(torch.stack([logs[name].float() for name in names]))
        self._waited += waited
        if len(self._rows) == self.size:
            self.flush()

    def begin(self) -> None:
        """Time runs from here: evaluation and checkpoints are no part of a step's speed."""
        self._waited, self._since = 0.0, time.perf_counter()

    def flush(self) -> None:
        """Raises RunError naming the step and the terms where a value is not finite, on every rank alike."""
        if not self._rows:
            return
        values = distributed.mean(torch.stack(self._rows)).tolist()
        seconds = time.perf_counter() - self._since
        for i, ((step, epoch, lr), row) in enumerate(zip(self._steps, values, strict=True)):
            line = {
                name if "/" in name else f"train/{name}": v for name, v in zip(self._names, row, strict=True)
            }
            if bad := [name for name, v in line.items() if not math.isfinite(v)]:
                self._rows, self._steps = [], []
                raise NonFiniteError(step, bad)
            if i == len(values) - 1:
                line["speed/images_per_s"] = len(values) * self.batch_size / max(seconds, 1e-9)
                line["speed/data_wait"] = min(self._waited / max(seconds, 1e-9), 1.0)
            if self.record:
                self.record.write(step, {"epoch": round(epoch, 5), "train/lr": lr, **line})
        self._rows, self._steps = [], []
        self.begin()


class NonFiniteError(RunError):
    def __init__(self, step: int, terms: list[str]) -> None:
        super().__init__(f"step {step}: {', '.join(terms)} is not finite")
        self.step, self.terms = step, terms

    def explain(self, index: NDArray[np.int64], saved_step: int) -> str:
        """What happened to the batch of samples `index` (B,), and what can be done about it."""
        shown = ", ".join(str(i) for i in index[:8].tolist())
        return (
            f"{self} at step {self.step}, batch of sample indices {shown}, … ({len(index)} in all); the last"
            f" checkpoint is step {saved_step}: lower train.optimizer.lr or set train.clip"
        )


def tensorboard_sink(run_dir: Path) -> Callable[[int, dict[str, float]], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run_dir / "tensorboard"))

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write


def wandb_sink(run_dir: Path, recipe: dict[str, Any]) -> Callable[[int, dict[str, float]], None]:
    import wandb

    run = wandb.init(dir=str(run_dir), name=run_dir.name, project="raysurl", config=recipe)
    return lambda step, values: run.log(values, step=step)


def mlflow_sink(run_dir: Path, recipe: dict[str, Any]) -> Callable[[int, dict[str, float]], None]:
    import mlflow

    mlflow.start_run(run_name=run_dir.name)
    mlflow.log_dict(recipe, "recipe.json")
    return lambda step, values: mlflow.log_metrics(values, step=step)
