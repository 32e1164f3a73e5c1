"""Where the numbers of a run go besides `metrics.jsonl`: TensorBoard, W&B and MLflow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysurl.metrics import Sink
from raysurl.recipe import Recipe


def sinks(run_dir: Path, recipe: Recipe) -> list[Sink]:
    """Those that the recipe's `log` asks for."""
    found: list[Sink] = []
    if recipe.log.tensorboard:
        found.append(TensorBoard(run_dir))
    if recipe.log.wandb:
        found.append(to_wandb(run_dir, recipe.model_dump(mode="json")))
    if recipe.log.mlflow:
        found.append(to_mlflow(run_dir, recipe.model_dump(mode="json")))
    return found


class TensorBoard:
    """Scalars in the run directory's `tensorboard`."""

    def __init__(self, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if threading.excepthook is not _without_writers:
            _others.append(threading.excepthook)
            threading.excepthook = _without_writers
        self.writer = SummaryWriter(str(run_dir / "tensorboard"))

    def __call__(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()


_others: list[Callable[[Any], object]] = []


def _without_writers(raised: Any) -> None:
    """TensorBoard's thread prints what it raises, and raises it again at the next call, where it is understood."""
    if type(raised.thread).__name__ != "_AsyncWriterThread":
        _others[-1](raised)


def to_wandb(run_dir: Path, recipe: dict[str, Any]) -> Sink:
    import wandb

    run = wandb.init(dir=str(run_dir), name=run_dir.name, project="raysurl", config=recipe)
    return lambda step, values: run.log(values, step=step)


def to_mlflow(run_dir: Path, recipe: dict[str, Any]) -> Sink:
    import mlflow

    mlflow.start_run(run_name=run_dir.name)
    mlflow.log_dict(recipe, "recipe.json")
    return lambda step, values: mlflow.log_metrics(values, step=step)
