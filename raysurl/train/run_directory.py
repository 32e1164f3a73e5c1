"""The run directory: where a run's recipe, metrics, results, checkpoints and encoder stand."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from raysurl import health, intervals, metrics, plugins, stopping
from raysurl.classifier import write_classifiers
from raysurl.data.source import Source
from raysurl.errors import InputError
from raysurl.evaluate.evaluator import Evaluated
from raysurl.paths import default_place, place, whole
from raysurl.recipe import Recipe, dump, read_stored, recipe_from
from raysurl.runtime import Runtime, threads_of
from raysurl.train import gain, lock

# What may differ when a run is resumed; everything else must be as it was.
FREE_ON_RESUME = {"runtime", "scale", "log", "checkpoint", "eval", "resume", "output", "recipe"}
GIVEN = "given"  # the folder of the images that were given from Python
# what a directory may hold that holds no run
NOTHING = {lock.FILE, lock.FILE + lock.HELD, stopping.FILE, GIVEN}


@contextlib.contextmanager
def claim(recipe: Recipe) -> Iterator[tuple[Recipe, Path]]:
    """Make the run directory, or check that it can be resumed, and hold it; gives the recipe with `output` absolute.

    Raises InputError if the directory holds another run, nothing to resume, or a different recipe, if another process
    works in it, or if what is written there would be lost.
    """
    run_dir = place("output", recipe.output) if recipe.output else default_directory(recipe)
    recipe = recipe.model_copy(update={"output": str(run_dir)})
    with refusing(run_dir):
        _check(recipe, run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
    with lock.working_in(run_dir, named=f"output={run_dir}"):
        with refusing(run_dir):
            _check(recipe, run_dir)  # again: it was free to others until now
            write_atomic(run_dir / "recipe.yaml", dump(recipe.model_copy(update={"resume": False})))
        stopping.forget(run_dir)
        yield recipe, run_dir


def _check(recipe: Recipe, run_dir: Path) -> None:
    stored = run_dir / "recipe.yaml"
    if recipe.resume:
        if not stored.is_file():
            raise InputError(
                f"output={run_dir} has no recipe.yaml, so there is no run to resume; leave out resume=true"
            )
        if (checkpoints := run_dir / "checkpoints").exists() and not checkpoints.is_dir():
            raise InputError(
                f"{checkpoints} is no folder, so no checkpoint can be read or written; move it away"
            )
        _check_same(recipe, read_stored(run_dir), run_dir)
    elif is_taken(run_dir):
        raise InputError(
            f"output={run_dir} is not empty; continue that run with resume=true or name another directory"
        )


def is_taken(directory: Path) -> bool:
    """Whether there is something else than an empty folder."""
    if not directory.is_dir():
        return os.path.lexists(directory)
    return any(path.name not in NOTHING for path in directory.iterdir())


@contextlib.contextmanager
def refusing(directory: Path) -> Iterator[None]:
    """What the system says of a directory that is to be written to, as InputError."""
    try:
        yield
    except OSError as error:
        said = f"output={directory} cannot be made a directory ({error.strerror})"
        raise InputError(f"{said}; name a place that can be written to") from None


def default_directory(recipe: Recipe) -> Path:
    """`runs/<method>-<data>-<time>` here, or under the home directory inside a submitted job, whose cwd is a copy."""
    data = plugins.short(recipe.data.name).replace(":", "-").lower()
    return (
        default_place("runs") / f"{plugins.short(recipe.method.name)}-{data}-{time.strftime('%Y%m%d-%H%M%S')}"
    )


def _check_same(recipe: Recipe, stored: dict[str, Any], run_dir: Path) -> None:
    now = yaml.safe_load(dump(recipe))
    with contextlib.suppress(InputError):  # keys that were not there when the run began have their defaults
        stored = yaml.safe_load(dump(recipe_from(stored)))
    for key in sorted(set(now) | set(stored)):
        if key not in FREE_ON_RESUME and now.get(key) != stored.get(key):
            name = key
            if isinstance(now.get(key), dict) and isinstance(stored.get(key), dict):
                sub = next(k for k in {**now[key], **stored[key]} if now[key].get(k) != stored[key].get(k))
                name, was, is_now = f"{key}.{sub}", stored[key].get(sub), now[key].get(sub)
            else:
                was, is_now = stored.get(key), now.get(key)
            raise InputError(
                f"the run in {run_dir} has {name}={was}, not {is_now}; resume it with the same recipe"
            )


def write_atomic(path: Path, text: str) -> None:
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


@dataclass
class Spent:
    """`began` is moved back on resume by what was spent before; `epochs`: seconds of each since the last start."""

    began: float = field(default_factory=time.time)
    epochs: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.time() - self.began

    @contextlib.contextmanager
    def epoch(self) -> Iterator[None]:
        """Around an epoch: what is rebuilt before it and its steps, without evaluation."""
        began = time.perf_counter()
        yield
        self.epochs.append(time.perf_counter() - began)

    @property
    def epoch_s(self) -> float | None:
        """Median of the later half of the epochs, when what a method does from some epoch on is done in each."""
        return _median(self.epochs[len(self.epochs) // 2 :])


def write_results(
    run_dir: Path,
    recipe: Recipe,
    runtime: Runtime,
    source: Source,
    evaluated: Evaluated,
    tally: metrics.Tally,
    spent: Spent,
    *,
    steps: int,
    signals: dict[str, float],
) -> None:
    """`results.json`: final metrics (last epoch) with their intervals, gains over the baselines, the best online ones
    labelled so, and what the run was.

    `signals`: of raysurl.train.examination. What the run has come to is the tally's, which a checkpoint carries;
    metrics.jsonl, which may be damaged, gives the speeds alone.
    """
    values, gains = tally.loss() | evaluated.metrics, evaluated.gains
    lines = metrics.read(run_dir / "metrics.jsonl")
    found = health.diagnose({**tally.memory, **signals, **health.combined(values, tally.latest)}, gains)
    facts = gain.RunFacts(recipe, values, tally, steps, source.labels)
    results = {
        "metrics": values,
        "intervals": intervals.of_metrics(values),
        "gains": gains,
        "best": tally.best,
        "health": gain.explained(found, facts),
        "signals": signals,
        "rule": recipe.method.rule(),
        "seconds": spent.seconds,
        "epoch_s": spent.epoch_s,
        "images_per_s": _median(
            [line["speed/images_per_s"] for line in lines if "speed/images_per_s" in line]
        ),
        "data_wait": _median([line["speed/data_wait"] for line in lines if "speed/data_wait" in line]),
        "num_samples": int(source.readable.sum()),
        "smallest_class": _smallest_class(source),
        "world_size": runtime.world_size,
        "runtime": runtime.name,
        "threads": threads_of(recipe.scale.threads, runtime.device),
        "precision": recipe.precision(runtime.device),
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(runtime.device),
        "skipped": [{"index": s.index, "name": s.name, "reason": s.reason} for s in source.skipped],
        "finished": True,
    }
    write_classifiers(run_dir, evaluated.classifiers, recipe, source)
    write_atomic(run_dir / "results.json", json.dumps(results, indent=1))


def _smallest_class(source: Source) -> int | None:
    """Samples of the class that has the fewest; None without labels."""
    if source.labels is None:
        return None
    known = source.labels[source.readable & (source.labels >= 0)]
    return int(np.unique(known, return_counts=True)[1].min()) if len(known) else None


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("raysurl", "torch", "torchvision", "ray", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | plugins.packages


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that the package runs from, `+` where files differ from it.

    Kept from the first call, which the trainer makes when it starts: files may change while it runs.
    """
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True
        )
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True)
    except OSError:
        return None
    return head.stdout.strip() + ("+" if changed.returncode else "") if head.returncode == 0 else None


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {os.cpu_count()} cores"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
