"""A tiny real run of any method (raysurl.testing.small), and the networks and methods that tests choose from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from raysurl.recipe import Recipe
from raysurl.runtime import LocalRuntime
from raysurl.testing import small
from raysurl.testing.small import sources, start, steps, tiny_teacher
from raysurl.train import trainer

__all__ = [
    "BACKBONES",
    "PAPERS",
    "recipe_for",
    "slow_but",
    "sources",
    "start",
    "steps",
    "tiny_teacher",
    "train",
]

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
    """As `small.recipe_for`; mocov3/vit is with a network of BACKBONES."""
    name, _, backbone = name.partition("/")
    return small.recipe_for(name, **changes, **({"encoder": BACKBONES[backbone]} if backbone else {}))


def train(recipe: Recipe, run_dir: Path) -> None:
    run_dir.mkdir(exist_ok=True)
    trainer.train(recipe, LocalRuntime(torch.device("cpu")), *sources(recipe), run_dir)
