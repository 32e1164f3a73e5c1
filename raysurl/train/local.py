"""runtime=local: the trainer in this process, on the same samples, without Ray."""

from __future__ import annotations

from pathlib import Path

from raysurl.data.machine import cores
from raysurl.data.names import Samples
from raysurl.data.source import Source, open_source
from raysurl.errors import InputError
from raysurl.metrics import decoding_progress
from raysurl.recipe import Recipe
from raysurl.runtime import LocalRuntime, default_device
from raysurl.train import cost, trainer


def check(recipe: Recipe) -> None:
    """One process: `scale.workers` above one cannot be. Raises InputError."""
    if (recipe.scale.workers or 1) > 1:
        raise InputError(
            f"scale.workers={recipe.scale.workers} needs runtime=ray; runtime=local is one process"
        )


def measure(recipe: Recipe, samples: Samples) -> tuple[cost.Pace | None, int]:
    """The pace of the run, whose one worker this process is."""
    return cost.measure(placed(recipe), samples, default_device()), 1


def run(recipe: Recipe, samples: Samples, eval_samples: Samples | None, run_dir: Path) -> None:
    source, eval_source = open_sources(recipe, samples, eval_samples, run_dir)
    trainer.train(placed(recipe), LocalRuntime(default_device()), source, eval_source, run_dir)


def placed(recipe: Recipe) -> Recipe:
    """Without a GPU all cores are threads of the one process, unless the recipe says otherwise."""
    if recipe.scale.threads or default_device().type != "cpu":
        return recipe
    return recipe.with_threads(cores())


def open_sources(
    recipe: Recipe, samples: Samples, eval_samples: Samples | None, run_dir: Path | None = None
) -> tuple[Source, Source | None]:
    """Decode or check the data in this process; its listing is kept in the run directory."""
    train_manifest, eval_manifest = (
        run_dir / name if run_dir else None for name in ("manifest.parquet", "eval_manifest.parquet")
    )
    progress = decoding_progress(run_dir) if run_dir else None
    source = open_source(samples, recipe.data, manifest_path=train_manifest, progress=progress)
    if eval_samples is None:
        return source, None
    return source, open_source(eval_samples, recipe.data, manifest_path=eval_manifest, progress=progress)
