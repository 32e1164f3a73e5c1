"""One trial: train and evaluate a recipe, watch it, and write down how it ended.

Where it trains is handed in: in this process (`in_process`), or on several workers (raysurl.scale.nested); all that
judges and records it is the same. A trial that was interrupted goes on from the newest checkpoint of its own directory.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import TypeAdapter

from raysurl import health, plain, stopping
from raysurl.data.source import Source
from raysurl.errors import DivergedError, InputError, RunError, UnhealthyError, out_of_memory
from raysurl.memory.record import MemoryRecord
from raysurl.metrics import latest_step
from raysurl.recipe import Recipe, dump, read_stored
from raysurl.sweep.space import Stop
from raysurl.train import run_directory, trainer
from raysurl.train.lock import following

Early = Literal["collapsed", "diverged", "pruned", "failed"]
State = Literal["finished"] | Early
EARLY: tuple[Early, ...] = get_args(Early)
FINAL = ("finished", "collapsed", "diverged", "pruned")  # a failed trial is tried again by the next start
OUTCOME = "trial.json"
RISING = 1.05  # a spread that grew by more while it was found collapsed recovers by itself

OpenSources = Callable[[], tuple[Source, Source | None]]
Report = Callable[[dict[str, Any]], None]
Train = Callable[[Recipe, Path, "Watch"], None]  # to the end, or until the watch raises


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
    epoch_s: float | None = None  # seconds of an epoch without evaluation, see run_directory.Spent
    rule: str = ""  # see MethodConfig.rule


class CollapsedError(Exception):
    """Raised out of the trainer to end a collapsed trial early."""


class PrunedError(Exception):
    """The same of a trial with a finding that lasts, where its recipe asks for that (log.on_finding=prune)."""


def run_trial(
    recipe: Recipe, directory: Path, train: Train, *, stop: Stop, report: Report | None = None
) -> Outcome:
    """Run or continue the trial in `directory`, unless it has ended already; its outcome is written there.

    `report` is called after each epoch with its number, the seconds so far and what was evaluated, and may raise to end
    the trial. Raises StoppedError where the sweep is stopped: then there is no outcome, and the next start goes on.
    """
    began = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    with following(directory):
        known = read_outcome(directory)
        if known and known.state in FINAL:
            return known
        (directory / OUTCOME).unlink(missing_ok=True)
        watch = Watch(recipe.total_epochs, stop, report, prunes=recipe.log.on_finding == "prune")
        outcome = _attempt(recipe, directory, train, watch)
        overhead = time.perf_counter() - began - watch.trained_s
        outcome = Outcome(**{**asdict(outcome), "overhead": overhead, "epochs": watch.epochs})
        write_outcome(directory, outcome)
    return outcome


def _attempt(recipe: Recipe, directory: Path, train: Train, watch: Watch) -> Outcome:
    try:
        recipe = recipe.model_copy(update={"output": str(directory)})
        if not _continues(recipe, directory):
            _clear(directory)
            run_directory.write_atomic(directory / "recipe.yaml", dump(recipe))
        train(recipe, directory, watch)
        watch.look_at_clock()
        if signum := stopping.asked(directory):
            raise stopping.StoppedError(signum)
        results = json.loads((directory / "results.json").read_text())
        said = _collapse(results["health"])
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # encoder.safetensors is what is kept
        state: State = "collapsed" if said else "finished"
        found = Outcome(state, said, results["metrics"], results["seconds"])
        return replace(found, epoch_s=results.get("epoch_s"), rule=results.get("rule", ""))
    except CollapsedError as error:
        return Outcome("collapsed", str(error), watch.metrics, watch.trained_s)
    except (PrunedError, UnhealthyError) as error:
        return Outcome("pruned", str(error), watch.metrics, watch.trained_s)
    except DivergedError as error:
        return Outcome("diverged", str(error), watch.metrics, watch.trained_s)
    except (InputError, RunError) as error:
        return Outcome("failed", str(error), watch.metrics, watch.trained_s)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        return Outcome("failed", f"out of memory: {said}", watch.metrics, watch.trained_s)


def _continues(recipe: Recipe, directory: Path) -> bool:
    """Whether the directory, named by the recipe's hash, holds a trial of the same random streams to go on with."""
    return (directory / "recipe.yaml").is_file() and read_stored(directory)["streams"] == recipe.streams


def in_process(open_sources: OpenSources, device: torch.device) -> Train:
    """Training in this process, which trials use one after another: seeds, threads and caches are set anew."""

    def train(recipe: Recipe, directory: Path, watch: Watch) -> None:
        reset(recipe)
        source, eval_source = open_sources()
        watch.start()
        trainer.train(recipe, TrialRuntime(device, directory, watch), source, eval_source, directory)

    return train


def reset(recipe: Recipe) -> None:
    """Leave nothing of the trial that this process ran before."""
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()  # what libraries hold stays: later collections look at what trials have left only
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.set_num_threads(recipe.scale.threads or 1)
    if recipe.train.compile:
        torch._dynamo.reset()


# -------------------------------------------------------------------- while it trains


@dataclass
class TrialRuntime:
    """One process with memory in it, watched after each epoch; see raysurl.runtime."""

    device: torch.device
    run_dir: Path
    watch: Watch
    name: str = "local"
    rank: int = 0
    world_size: int = 1
    record: MemoryRecord | None = None

    def report(self, metrics: dict[str, Any]) -> None:
        self.watch(metrics, latest_step(self.run_dir / "metrics.jsonl"))


@dataclass
class Watch:
    """Looks at each epoch's signals: ends the trial when it has collapsed, or is to be pruned, and passes them on."""

    total_epochs: int
    stop: Stop
    report: Report | None
    prunes: bool = False  # a trial with a finding that lasts
    began: float = 0.0
    trained_s: float = 0.0
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    _collapsed: list[float] = field(
        default_factory=list
    )  # spread at each of the latest epochs found collapsed

    def start(self) -> None:
        """Training starts, or starts again from a checkpoint."""
        self.began, self._collapsed = time.perf_counter(), []

    def look_at_clock(self) -> None:
        self.trained_s = time.perf_counter() - self.began

    def __call__(self, metrics: Mapping[str, Any], latest: Mapping[str, float]) -> None:
        """`metrics`: the trainer's report of an epoch; `latest`: its last step. Raises CollapsedError."""
        self.look_at_clock()
        self.epochs = int(metrics["epoch"])
        evaluated = {k: float(v) for k, v in metrics.items() if k not in ("epoch", "step", "finding")}
        self.metrics |= evaluated
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
        if self.prunes and (lasting := metrics.get("finding")):
            raise PrunedError(f"ended after epoch {self.epochs} of {self.total_epochs}: {lasting}")
        if self.report:
            more = {"epoch": self.epochs, "seconds": self.trained_s, "evaluated": bool(evaluated)}
            self.report({**self.metrics, **more})

    def _is_stuck(self) -> bool:
        """Collapsed for as long as `stop.patience` says and not on the way out: a warm-up may pass through it."""
        last = self._collapsed[-self.stop.patience :]
        return len(last) == self.stop.patience and last[-1] <= RISING * min(last)


def _collapse(findings: list[str]) -> str:
    """The first finding that is a collapse; a low rank alone is none."""
    return next((said for said in findings if said.startswith("collapsed")), "")


# -------------------------------------------------------------------- the trial's directory


def read_outcome(directory: Path) -> Outcome | None:
    """None where there is none, or what is there is no outcome: then the trial is run."""
    try:
        return TypeAdapter(Outcome).validate_python(plain.read_mapping(directory / OUTCOME))
    except (OSError, ValueError):
        return None


def write_outcome(directory: Path, outcome: Outcome) -> None:
    run_directory.write_atomic(directory / OUTCOME, json.dumps(asdict(outcome), indent=1))


def _clear(directory: Path) -> None:
    """Remove what a start that did not come to write its recipe has left, but not the lock and the cell's name."""
    for path in directory.iterdir():
        if path.name not in (*run_directory.NOTHING, "cell.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
