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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from raysurl import health, intervals, metrics
from raysurl.classifier import write_classifiers
from raysurl.data.source import Source
from raysurl.errors import InputError
from raysurl.evaluate.evaluator import Evaluated
from raysurl.paths import given_path
from raysurl.recipe import Recipe, dump, read_stored, recipe_from
from raysurl.runtime import Runtime, threads_of

# What may differ when a run is resumed; everything else must be as it was.
FREE_ON_RESUME = {"runtime", "scale", "log", "checkpoint", "eval", "resume", "output", "recipe"}
LOCK_S = 60.0  # that a dying process may take to let go of a run directory


def claim(recipe: Recipe) -> tuple[Recipe, Path]:
    """Make the run directory, or check that it can be resumed; returns the recipe with `output` absolute.

    Raises InputError if the directory holds another run, nothing to resume, or a different recipe.
    """
    run_dir = given_path("output", recipe.output).absolute() if recipe.output else default_directory(recipe)
    recipe = recipe.model_copy(update={"output": str(run_dir)})
    stored = run_dir / "recipe.yaml"
    if recipe.resume:
        if not stored.is_file():
            raise InputError(
                f"output={run_dir} has no recipe.yaml, so there is no run to resume; leave out resume=true"
            )
        _check_same(recipe, read_stored(run_dir), run_dir)
    elif run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise InputError(
            f"output={run_dir} is not empty; continue that run with resume=true or name another directory"
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output={run_dir} cannot be made a directory ({error.strerror})") from None
    write_atomic(stored, dump(recipe.model_copy(update={"resume": False})))
    return recipe, run_dir


def default_directory(recipe: Recipe) -> Path:
    """`runs/<method>-<data>-<time>` here, or under the home directory inside a submitted job, whose cwd is a copy."""
    root = (
        Path.home() / "raysurl-runs" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd() / "runs"
    )
    data = recipe.data.name.replace(":", "-").lower()
    return root / f"{recipe.method.name}-{data}-{time.strftime('%Y%m%d-%H%M%S')}"


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
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time: one that a killed driver has left behind may take a moment to die. Raises TimeoutError."""
    try:
        with FileLock(path, timeout=LOCK_S):
            yield
    except Timeout:
        raise TimeoutError(f"another process is running in {path.parent}") from None


def sinks(run_dir: Path, recipe: Recipe) -> list[Callable[[int, dict[str, float]], None]]:
    """Where step metrics go besides metrics.jsonl."""
    found = []
    if recipe.log.tensorboard:
        found.append(metrics.tensorboard_sink(run_dir))
    if recipe.log.wandb:
        found.append(metrics.wandb_sink(run_dir, recipe.model_dump(mode="json")))
    if recipe.log.mlflow:
        found.append(metrics.mlflow_sink(run_dir, recipe.model_dump(mode="json")))
    return found


def write_results(
    run_dir: Path,
    recipe: Recipe,
    runtime: Runtime,
    source: Source,
    evaluated: Evaluated,
    *,
    seconds: float,
) -> None:
    """`results.json`: final metrics (last epoch) with their intervals, gains over the baselines, the best online ones
    labelled so, and what the run was."""
    values, gains = evaluated.metrics, evaluated.gains
    lines = metrics.read(run_dir / "metrics.jsonl")
    steps = {line["step"]: line for line in lines if "train/loss" in line}
    per_epoch = len(steps) // recipe.total_epochs
    last = [steps[step] for step in sorted(steps)[-per_epoch:]]
    results = {
        "metrics": {"train/loss": sum(line["train/loss"] for line in last) / len(last), **values},
        "intervals": intervals.of_metrics(values),
        "gains": gains,
        "best": _best(lines),
        "health": health.diagnose({**_of_memory(lines), **health.combined(values, last[-1])}, gains),
        "seconds": seconds,
        "images_per_s": _median(
            [line["speed/images_per_s"] for line in lines if "speed/images_per_s" in line]
        ),
        "data_wait": _median([line["speed/data_wait"] for line in lines if "speed/data_wait" in line]),
        "num_samples": int(source.readable.sum()),
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


def _of_memory(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The last signals of the clusters that memory holds."""
    return {name: value for line in lines for name, value in line.items() if name.startswith("health/level")}


def _best(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    best: dict[str, dict[str, float]] = {}
    for line in lines:
        value = line.get("eval/knn_top1")
        if value is not None and value > best.get("eval/knn_top1", {"value": -1.0})["value"]:
            best["eval/knn_top1"] = {"value": value, "step": line["step"]}
    return best


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("raysurl", "torch", "torchvision", "ray", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
