"""A run of two epochs on sixty digits, fine-tuned too: all that a run directory holds, in about a second; its index."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from pathlib import Path

import pytest
from places import made_once

from raysurl import overview
from raysurl.commands import index
from raysurl.recipe import load_recipe
from raysurl.run import pretrain
from raysurl.train import embedding

SETTINGS = (
    *("recipe=ressl/digits", "runtime=local", "data.limit=60", "views.size=8", "encoder.name=convnet"),
    *("encoder.channels=[4]", "train.batch_size=20", "train.epochs=2", "method.hidden=8", "method.dim=4"),
    *("method.queue_size=40", "log.tensorboard=false", "eval.protocols=[knn, finetune]", "eval.knn_k=[5]"),
    *("eval.baselines=false", "scale.threads=1"),
)


@cache
def finished_run() -> Path:
    """Made once in a process; who changes something copies it."""
    root = made_once("small")
    with contextlib.redirect_stdout(io.StringIO()):
        return pretrain(load_recipe([*SETTINGS, f"output={root / 'run'}"]))


def mapped_run(path: Path) -> Path:
    """The same run, for kNN alone, with a map that is made in few steps although the run has few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "LEAST_STEPS", 1)
        patch.setattr(overview, "STEPS", 6)
        return pretrain(load_recipe([*SETTINGS, "eval.protocols=[knn]", f"output={path}"]))


@cache
def finished_index() -> Path:
    """The index of what that run makes of its digits; who changes something copies it."""
    root = made_once("small")
    with contextlib.redirect_stdout(io.StringIO()):
        index.main([f"run={finished_run()}", f"output={root / 'index'}"])
    return root / "index"
