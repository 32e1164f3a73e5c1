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
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl import distributed, plain
from raysurl.errors import RunError, StorageError
from raysurl.paths import whole

Sink = Callable[[int, dict[str, float]], None]  # where the numbers of a step go besides metrics.jsonl
EVERY_S = 5.0  # between two notes on how far reading the data is
# hears each line of the run of this process as it is written
listener: ContextVar[Callable[[dict[str, Any]], None]] = ContextVar("listener", default=lambda line: None)
TAIL = 1 << 16  # bytes at the end of metrics.jsonl that hold its latest step


class MetricsWriter:
    """Append-only `metrics.jsonl` plus optional TensorBoard, W&B and MLflow writers, which a thread serves in order."""

    def __init__(self, run_dir: Path, *, start_step: int, sinks: list[Sink]) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.sinks = sinks
        drop_from(self.path, start_step)
        self._file = self.path.open("a", buffering=1)
        self._identity = _identity(os.fstat(self._file.fileno()))
        self._thread = ThreadPoolExecutor(1, "record")
        self._last: Future[None] | None = None
        self._tell_listener = listener.get()

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        if self.sinks:
            if self._last and self._last.done():
                self._last.result()  # an error of the thread
            self._last = self._thread.submit(self._tell, step, numbers)
        self._tell_listener({"step": step, **values})

    def _tell(self, step: int, numbers: dict[str, float]) -> None:
        for sink in self.sinks:
            sink(step, numbers)

    def flush(self) -> None:
        """Wait for the writers."""
        if self._last:
            self._last.result()
        for sink in self.sinks:
            getattr(sink, "flush", lambda: None)()

    def close(self) -> None:
        """Nothing is written after it; what the writers still have to do, they do."""
        self._thread.shutdown(wait=False)
        self._file.close()

    def check(self) -> None:
        """Raises StorageError where what is written reaches nobody: the directory is gone, or it is another one."""
        try:
            there = _identity(os.stat(self.path))
        except OSError:
            there = None
        if there != self._identity:
            raise StorageError(
                f"{self.path} is gone: the directory was removed or moved, or its file system is no longer mounted"
            )

    def event(self, step: int, text: str, **values: Any) -> None:
        line = {"step": step, "event": text, "time": time.time(), **values}
        self._file.write(json.dumps(line) + "\n")
        self._tell_listener(line)


def decoding_progress(run_dir: Path) -> Callable[[int, int], None]:
    """A callback (samples done, of) that leaves an event now and then, before the trainer has opened the record."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > EVERY_S:
            last = time.monotonic()
            note(run_dir, [f"reading data: {done:,} of {total:,} samples"])

    return report


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


def line_of(text: str | bytes) -> dict[str, Any] | None:
    """A line of a metrics file; None for what is none: cut by a kill, damaged, or written by something else."""
    try:
        line = plain.parsed(text)
    except ValueError:
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**63 else None


def note(run_dir: Path, sentences: Sequence[str]) -> None:
    """Leave events before the trainer has opened the record."""
    with (run_dir / "metrics.jsonl").open("a") as file:
        for text in sentences:
            file.write(json.dumps({"step": 0, "event": text, "time": time.time()}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file."""
    if not path.exists():
        return []
    lines = map(line_of, path.read_text(errors="replace").splitlines())
    return [line for line in lines if line is not None]


def latest_step(path: Path) -> dict[str, float]:
    """The last step line of a metrics file, numbers only."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        lines = file.read().splitlines()
    for line in map(line_of, reversed(lines)):
        if line is not None and "train/loss" in line:
            return {k: v for k, v in line.items() if isinstance(v, int | float)}
    return {}


def drop_from(path: Path, step: int) -> None:
    """Remove the step lines that a run resumed at `step` will write again, and a last line that a kill cut short."""
    lines = read(path)
    kept = [line for line in lines if line["step"] < step or "event" in line or _is_evaluation(line, step)]
    if not path.exists():
        return
    content = path.read_bytes()
    if len(kept) == len(content.splitlines()) and content.endswith(b"\n"):
        return
    with whole(path) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))


def _is_evaluation(line: dict[str, Any], step: int) -> bool:
    """An evaluation is written at the step that comes next, so the one at `step` itself is done."""
    return line["step"] == step and "train/loss" not in line


@dataclass
class Tally:
    """What the run has come to so far; a checkpoint carries it, so that it does not hang on the lines of a file.

    losses: `train/loss` of each step of this epoch; latest: the last step's line; memory: the latest signals of the
    clusters that memory holds; best: the best online evaluation and its step.
    """

    losses: list[float] = field(default_factory=list)
    latest: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    first: float | None = None  # `train/loss` of the first epoch

    def step(self, line: dict[str, float]) -> None:
        self.latest = line
        self.losses.append(line["train/loss"])

    def begin_epoch(self) -> None:
        if self.first is None and self.losses:
            self.first = self.loss()["train/loss"]
        self.losses = []

    def loss(self) -> dict[str, float]:
        """The mean of the epoch, by its name; empty where it has no step yet."""
        return {"train/loss": sum(self.losses) / len(self.losses)} if self.losses else {}

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        name = "eval/knn_top1"
        if name in values and values[name] > self.best.get(name, {"value": -1.0})["value"]:
            self.best[name] = {"value": float(values[name]), "step": step}  # a plain number, as states hold

    def looked(self, values: dict[str, float]) -> None:
        self.memory |= {name: value for name, value in values.items() if name.startswith("health/level")}

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)


class StepBlock:
    """Collects the logs of up to `size` steps on the device; `flush` averages them over ranks and writes them.

    `asked`: whether the run is to stop, asked on rank 0 with each block; `stop` is then true on every rank.
    """

    def __init__(
        self,
        size: int,
        record: MetricsWriter | None,
        batch_size: int,
        asked: Callable[[], object] = lambda: None,
    ) -> None:
        self.size, self.record, self.batch_size = size, record, batch_size
        self.tally, self._asked, self.stop = Tally(), asked, False
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
        wish = self._rows[0].new_full(
            (len(self._names),), float(self.record is not None and bool(self._asked()))
        )
        *values, wishes = distributed.mean(torch.stack([*self._rows, wish])).tolist()
        self.stop = self.stop or any(wishes)
        seconds = time.perf_counter() - self._since
        for i, ((step, epoch, lr), row) in enumerate(zip(self._steps, values, strict=True)):
            line = {
                name if "/" in name else f"train/{name}": v for name, v in zip(self._names, row, strict=True)
            }
            if bad := [name for name, v in line.items() if not math.isfinite(v)]:
                self._rows, self._steps = [], []
                raise NonFiniteError(step, bad)
            self.tally.step(dict(line))
            if i == len(values) - 1:
                line["speed/images_per_s"] = len(values) * self.batch_size / max(seconds, 1e-9)
                line["speed/data_wait"] = min(self._waited / max(seconds, 1e-9), 1.0)
            if self.record:
                self.record.write(step, {"epoch": round(epoch, 5), "train/lr": lr, **line})
        self._rows, self._steps = [], []
        if self.record:
            self.record.check()
        self.look()
        self.begin()

    def look(self) -> None:
        """What whoever hears the lines has asked since: seen at once where no other rank must see it too."""
        self.stop = self.stop or (distributed.world_size() == 1 and bool(self._asked()))


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
