"""A tiny real run of any method, for the tests that hold for all of them."""

import atexit
import contextlib
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raysurl import build, method
from raysurl.data.names import open_samples
from raysurl.data.source import open_source
from raysurl.encoder import encoder_of, write_encoder
from raysurl.recipe import Recipe, recipe_from
from raysurl.runtime import LocalRuntime
from raysurl.train import trainer

SMALL = {
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


# networks of today, small enough for views of 8 pixels; neither has a batch norm
BACKBONES = {
    "vit": {
        "name": "timm:vit_tiny_patch16_224",
        "options": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    },
    "convnext": {
        "name": "timm:convnext_atto",
        "options": {"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [4, 4, 8, 8]},
    },
}
PAPERS = ("genurl", "mvmr", "rcl", "ressl", "superand")


def slow_but(quick, names):
    """Parameters of a test of which only the `quick` ones are in the fast suite."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def recipe_for(name: str, **changes: Any) -> Recipe:
    """Digits, the small network, batch 16: sizes of `SMALL` where the method has such a setting."""
    name, _, backbone = name.partition("/")  # mocov3/vit: with a network of BACKBONES
    changes |= {"encoder": BACKBONES[backbone]} if backbone else {}
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
        "encoder": {"name": "convnet"},
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
    return open_source(train, recipe.data), None if test is None else open_source(test, recipe.data)


def start(recipe: Recipe, run_dir: Path, *, rank: int = 0, world_size: int = 1) -> trainer.Run:
    run_dir.mkdir(exist_ok=True)
    runtime = LocalRuntime(torch.device("cpu"), rank=rank, world_size=world_size)
    return trainer.start(recipe, runtime, *sources(recipe), run_dir)


def train(recipe: Recipe, run_dir: Path) -> None:
    run_dir.mkdir(exist_ok=True)
    trainer.train(recipe, LocalRuntime(torch.device("cpu")), *sources(recipe), run_dir)


def steps(run: trainer.Run, count: int) -> list[float]:
    """Losses of the next `count` optimizer steps."""
    losses = []
    run.model.train()
    for micro_batches, _ in run.loader.steps(run.step, run.step + count):
        losses.append(float(trainer.train_step(run, micro_batches)["loss"]))
        run.step += 1
    return losses
