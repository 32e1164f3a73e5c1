"""A tiny real run of any method, in which what holds for all of them is looked at."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from pydantic import ValidationError

from raysurl import build, method, plugins
from raysurl.data.names import open_samples
from raysurl.data.source import open_source
from raysurl.encoder import encoder_of, write_encoder
from raysurl.method import Batch, Output
from raysurl.recipe import Recipe, recipe_from
from raysurl.runtime import LocalRuntime
from raysurl.train import trainer

SMALL = {  # settings of methods, where they have them
    "hidden": 32,
    "predictor_hidden": 32,
    "dim": 16,
    "queue_size": 48,
    "projector": (32, 16),
    "prototypes": 12,
    "queue_epoch": 0,
    "frozen_steps": 0,
    "negatives": 48,
}


def fail(check: str, sentence: str) -> NoReturn:
    raise AssertionError(f"{check}: {sentence}")


def require(condition: bool, check: str, sentence: str) -> None:
    if not condition:
        fail(check, sentence)


@contextlib.contextmanager
def named(kind: plugins.Kind, subject: Any) -> Iterator[str]:
    """The name by which a recipe finds a subject: a class or function, or its name already."""
    if isinstance(subject, str):
        yield plugins.absolute(subject)
    else:
        name = str(getattr(subject, "__name__", type(subject).__name__)).rpartition(".")[2]
        with plugins.given(kind, name, subject) as known:
            yield known


def recipe_for(name: str, **changes: Any) -> Recipe:
    """Digits, the small network, batch 16: sizes of `SMALL` where the method has such a setting."""
    config = method.load(name).Config
    settings = {k: v for k, v in SMALL.items() if k in config.model_fields} | changes.pop("method", {})
    with contextlib.suppress(ValidationError):  # the recipe judges wrong settings, not this
        takes = config.model_validate(settings).learns_from()
        if takes == "labels":
            changes.setdefault("teacher", {"name": "labels", "view": "plain"})
        elif takes != "no":
            changes.setdefault("teacher", {"name": tiny_teacher()})
    tree = {
        "method": {"name": name} | settings,
        "data": {"name": "digits", "limit": 80},
        "views": {"size": 8, "mean": [0.3] * 3, "std": [0.38] * 3},
        "encoder": {"name": "convnet", "channels": [8, 16, 32]},  # what is tested is not how well it learns
        "train": {
            "batch_size": 16,
            "epochs": 2,
            "optimizer": {"lr": 0.05, "lr_batch": 0},
            "schedule": {"name": "constant", "warmup_epochs": 0},
        }
        | changes.pop("train", {}),
        "eval": {"every_epochs": 1, "linear_epochs": 2} | changes.pop("eval", {}),
        "log": {"every_steps": 2, "tensorboard": False},
    }
    return build.resolve(recipe_from({**tree, **changes}), None)


@functools.cache
def tiny_teacher() -> str:
    """The encoder file of a seeded MLP of another width than the student's, for views of 8 pixels."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    settings = {"encoder": {"name": "mlp", "widths": (24, 12)}, "views": {"size": 8}, "seed": 1}
    recipe = recipe_from({**settings, "data": {"name": "digits"}})
    return str(write_encoder(folder, encoder_of(recipe), recipe))


def sources(recipe: Recipe) -> tuple[Any, Any]:
    train, test = (open_samples(recipe.data, split, seed=recipe.seed) for split in ("train", "eval"))
    assert train is not None
    return open_source(train, recipe.data), None if test is None else open_source(test, recipe.data)


def start(recipe: Recipe, run_dir: Path, *, rank: int = 0, world_size: int = 1) -> trainer.Run:
    run_dir.mkdir(exist_ok=True)
    runtime = LocalRuntime(torch.device("cpu"), rank=rank, world_size=world_size)
    return trainer.start(recipe, runtime, *sources(recipe), run_dir)


@contextlib.contextmanager
def started(recipe: Recipe) -> Iterator[trainer.Run]:
    """A run in a folder of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        run = start(recipe, Path(folder))
        yield run
        run.writer.wait()


def logs(run: trainer.Run, count: int) -> list[dict[str, float]]:
    """What the next `count` optimizer steps log, `loss` among it."""
    found = []
    run.model.train()
    for micro_batches, _ in run.loader.steps(run.step, run.step + count):
        found.append({name: float(value) for name, value in trainer.train_step(run, micro_batches).items()})
        run.step += 1
    return found


def steps(run: trainer.Run, count: int) -> list[float]:
    """Losses of the next `count` optimizer steps."""
    return [values["loss"] for values in logs(run, count)]


def first_batch(run: trainer.Run) -> Batch:
    ((micro_batches, _),) = run.loader.steps(run.step, run.step + 1)
    return run.loader.to_batch(micro_batches[0])


def output_of(run: trainer.Run) -> tuple[Batch, Output]:
    """The next batch, and what the method makes of it."""
    batch = first_batch(run)
    snapshot = run.memory.snapshot(slice(None)) if run.memory else {}
    return batch, run.model(batch, snapshot, run.progress)
