"""runtime=local: the trainer in this process, on the same samples, without Ray."""

from __future__ import annotations

from pathlib import Path

from raysurl.data.names import Samples
from raysurl.data.source import Source, open_source
from raysurl.errors import InputError
from raysurl.metrics import decoding_progress
from raysurl.recipe import Recipe
from raysurl.runtime import LocalRuntime, default_device
from raysurl.train import trainer


def check(recipe: Recipe) -> None:
    """One process: `scale.workers` above one cannot be. Raises InputError."""
    if (recipe.scale.workers or 1) > 1:
        raise InputError(
            f"scale.workers={recipe.scale.workers} needs runtime=ray; runtime=local is one process"
        )


def run(recipe: Recipe, samples: Samples, eval_samples: Samples | None, run_dir: Path) -> None:
    source, eval_source = open_sources(recipe, samples, eval_samples, run_dir)
    trainer.train(recipe, LocalRuntime(default_device()), source, eval_source, run_dir)


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
