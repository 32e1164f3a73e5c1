"""One trial: train and evaluate a recipe in this process, and write down how it ended.

A trial process is used again by the next trial, so seeds, threads and caches are set anew. A trial that was
interrupted goes on from the newest checkpoint of its own directory.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from raysurl import health, run_directory, trainer
from raysurl.data.source import Source
from raysurl.errors import InputError, RunError
from raysurl.memory_link import Record
from raysurl.metrics import NonFiniteError
from raysurl.recipe import Recipe, dump
from raysurl.sweep.space import Stop

State = Literal["finished", "collapsed", "diverged", "pruned", "failed"]
FINAL = ("finished", "collapsed", "diverged", "pruned")  # a failed trial is tried again by the next start
OUTCOME = "trial.json"
LOCK_S = 60.0  # that a dying process may take to let go of a trial's directory
RISING = 1.05  # a spread that grew by more while it was found collapsed recovers by itself
TAIL = 1 << 16  # bytes at the end of metrics.jsonl that hold its latest step

OpenSources = Callable[[], tuple[Source, Source | None]]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. `seconds` of training and evaluation (of a trial that ended early: since its last start), and
    `overhead`, what the trial took beside them in its process."""

    state: State
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    overhead: float = 0.0
    epochs: int = 0


class CollapsedError(Exception):
    """Raised out of the trainer to end a collapsed trial early."""


def run_trial(
    recipe: Recipe,
    directory: Path,
    open_sources: OpenSources,
    *,
    stop: Stop,
    device: torch.device,
    report: Report | None = None,
) -> Outcome:
    """Run or continue the trial in `directory`, unless it has ended already; its outcome is written there.

    `report` is called after each epoch with its number and what was evaluated, and may raise to end the trial.
    """
    began = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        known = read_outcome(directory)
        if known and known.state in FINAL:
            return known
        (directory / OUTCOME).unlink(missing_ok=True)
        reset(recipe)
        watch = Watch(directory, recipe.total_epochs, stop, report)
        outcome = _attempt(recipe, directory, open_sources, watch, device)
        overhead = time.perf_counter() - began - watch.trained_s
        outcome = Outcome(**{**asdict(outcome), "overhead": overhead, "epochs": watch.epochs})
        write_outcome(directory, outcome)
    return outcome


def _attempt(
    recipe: Recipe, directory: Path, open_sources: OpenSources, watch: Watch, device: torch.device
) -> Outcome:
    try:
        recipe = recipe.model_copy(update={"output": str(directory)})
        if not (directory / "recipe.yaml").is_file():  # else go on: the directory's name is the recipe's hash
            _clear(directory)
            run_directory.write_atomic(directory / "recipe.yaml", dump(recipe))
        source, eval_source = open_sources()
        watch.began = time.perf_counter()
        trainer.train(recipe, TrialRuntime(device, watch), source, eval_source, directory)
        watch.trained_s = time.perf_counter() - watch.began
        results = json.loads((directory / "results.json").read_text())
        said = _collapse(results["health"])
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # encoder.safetensors is what is kept
        return Outcome("collapsed" if said else "finished", said, results["metrics"], results["seconds"])
    except CollapsedError as error:
        return Outcome("collapsed", str(error), watch.metrics, watch.trained_s)
    except RunError as error:
        diverged = isinstance(error.__context__, NonFiniteError)
        return Outcome("diverged" if diverged else "failed", str(error), watch.metrics, watch.trained_s)
    except InputError as error:
        return Outcome("failed", str(error), watch.metrics, watch.trained_s)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return Outcome(
            "failed", f"out of memory: {str(error).splitlines()[0]}", watch.metrics, watch.trained_s
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether it is what Python, CUDA or torch's CPU allocator raise when memory runs out."""
    named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return named or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def reset(recipe: Recipe) -> None:
    """Leave nothing of the trial that this process ran before."""
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()  # what libraries hold stays: later collections look at what trials have left only
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.set_num_threads(recipe.scale.threads)
    random.seed(recipe.seed)
    np.random.seed(recipe.seed % 2**32)  # nothing of ours draws from it; a library might
    torch.manual_seed(recipe.seed)
    if recipe.train.compile:
        torch._dynamo.reset()


# -------------------------------------------------------------------- while it trains


@dataclass
class TrialRuntime:
    """One process with memory in it, watched after each epoch; see raysurl.runtime."""

    device: torch.device
    watch: Watch
    name: str = "local"
    rank: int = 0
    world_size: int = 1
    record: Record | None = None

    def report(self, metrics: dict[str, Any]) -> None:
        self.watch(metrics)


@dataclass
class Watch:
    """Looks at each epoch's signals: ends the trial when it has collapsed, and passes them on."""

    directory: Path
    total_epochs: int
    stop: Stop
    report: Report | None
    began: float = 0.0
    trained_s: float = 0.0
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    _collapsed: list[float] = field(
        default_factory=list
    )  # spread at each of the latest epochs found collapsed

    def __call__(self, metrics: dict[str, Any]) -> None:
        """Raises CollapsedError."""
        self.trained_s = time.perf_counter() - self.began
        self.epochs = int(metrics["epoch"])
        evaluated = {k: float(v) for k, v in metrics.items() if k not in ("epoch", "step")}
        self.metrics |= evaluated
        latest = latest_step(self.directory / "metrics.jsonl")
        if "train/loss" in latest:
            self.metrics["train/loss"] = latest["train/loss"]
        signals = health.combined(evaluated, latest)
        said = _collapse(health.diagnose(signals))
        spread = signals.get("health/training_std", signals.get("health/std", 0.0))
        self._collapsed = [*self._collapsed, spread] if said else []
        if self.epochs == self.total_epochs:
            return  # the final evaluation says the rest
        if self.epochs >= self.stop.after * self.total_epochs and self._is_stuck():
            raise CollapsedError(f"ended after epoch {self.epochs} of {self.total_epochs}: {said}")
        if self.report:
            self.report({**self.metrics, "epoch": self.epochs, "evaluated": bool(evaluated)})

    def _is_stuck(self) -> bool:
        """Collapsed for as long as `stop.patience` says and not on the way out: a warm-up may pass through it."""
        last = self._collapsed[-self.stop.patience :]
        return len(last) == self.stop.patience and last[-1] <= RISING * min(last)


def _collapse(findings: list[str]) -> str:
    """The first finding that is a collapse; a low rank alone is none."""
    return next((said for said in findings if said.startswith("collapsed")), "")


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


# -------------------------------------------------------------------- the trial's directory


def read_outcome(directory: Path) -> Outcome | None:
    try:
        return Outcome(**json.loads((directory / OUTCOME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_outcome(directory: Path, outcome: Outcome) -> None:
    run_directory.write_atomic(directory / OUTCOME, json.dumps(asdict(outcome), indent=1))


def _clear(directory: Path) -> None:
    """Remove what a start that did not come to write its recipe has left, but not the lock and the cell's name."""
    for path in directory.iterdir():
        if path.name not in (".lock", "cell.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time: the one that a killed sweep has left behind may take a moment to die."""
    descriptor = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise RunError(f"another process is running the trial in {directory}") from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)
