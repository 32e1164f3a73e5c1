"""The main job: from arguments to a finished run directory."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raysurl import build, evaluate, teachers
from raysurl.data.names import Samples, open_samples
from raysurl.errors import InputError
from raysurl.evaluate import Division, divide
from raysurl.recipe import Recipe, dump, load_recipe, parse_override, read_mapping
from raysurl.report import progress, write_report
from raysurl.report.terminal import show_run
from raysurl.teachers import table as embeddings
from raysurl.train import run_directory

RUNTIMES = {
    "local": "raysurl.train.local",
    "ray": "raysurl.scale.train",
}  # Ray is imported only when it is used


def main(arguments: Sequence[str]) -> None:
    """`pretrain.py [recipe=NAME] [key=value …] [--print]`."""
    recipe = read_recipe([a for a in arguments if a != "--print"])
    if "--print" in arguments:
        print(dump(recipe), end="")
        return
    run_dir = pretrain(recipe)
    show_run(run_dir)


def read_recipe(arguments: Sequence[str]) -> Recipe:
    """The recipe of the arguments; with resume=true they are changes to the stored recipe."""
    given = dict(parse_override(a) for a in arguments)
    if not given.get("resume"):
        return load_recipe(arguments)
    if not given.get("output"):
        raise InputError("resume=true needs output=DIR, the run directory to continue")
    stored = Path(str(given["output"])).expanduser() / "recipe.yaml"
    if not stored.is_file():
        raise InputError(f"output={given['output']} has no recipe.yaml, so there is no run to resume")
    named = read_mapping(stored, str(stored), "recipe keys").get("recipe")
    if "recipe" in given and given["recipe"] != named:
        raise InputError(
            f"the run in {given['output']} was started with recipe={named}, not {given['recipe']}"
        )
    changes = [a for a in arguments if not a.startswith("recipe=")]
    return load_recipe([f"recipe={stored}", *changes]).model_copy(update={"recipe": named})


def pretrain(recipe: Recipe) -> Path:
    """Train and evaluate as the recipe says; returns the run directory. Everything checkable is checked first."""
    samples = open_samples(recipe.data, "train", seed=recipe.seed)
    eval_samples = open_samples(recipe.data, "eval", seed=recipe.seed)
    assert samples is not None
    recipe = build.fitted(recipe, samples.width())
    check(recipe, samples, eval_samples)
    runtime = importlib.import_module(RUNTIMES[recipe.runtime])
    runtime.check(recipe)
    recipe, run_dir = run_directory.claim(recipe)
    try:
        with progress.watching(run_dir):
            runtime.run(recipe, samples, eval_samples, run_dir)
    except InputError:
        if not recipe.resume and not (run_dir / "checkpoints").exists():
            shutil.rmtree(run_dir)  # ours and empty but for notes: the next try may have the name
        raise
    write_report(run_dir)
    return run_dir


def check(recipe: Recipe, samples: Samples, eval_samples: Samples | None) -> None:
    """What can be known before any worker starts. Raises InputError."""
    if len(samples) < 2:
        raise InputError(f"data.path={recipe.data.path} holds one sample; training needs two or more")
    if recipe.train.batch_size > len(samples):
        raise InputError(
            f"train.batch_size={recipe.train.batch_size} is larger than the data, {len(samples)} samples;"
            f" use at most {len(samples)}"
        )
    recipe.method_class().check(recipe.method_config(), len(samples))
    samples.nbytes_estimate()  # decodes a few: a data set of which nothing can be read is refused here
    encoder = build.encoder_of(recipe)
    if recipe.init_from:
        build.encoder_weights(Path(recipe.init_from), encoder)
    if teacher := build.teacher_of(recipe, len(samples), samples.labels):
        teachers.check_input(teacher, str(recipe.teacher.name), samples.width(), recipe.views.size)
    if (name := recipe.teacher.name) and name.endswith(".parquet"):
        embeddings.check_names(Path(name), samples)
    _check_evaluation(recipe, samples, eval_samples)


def _check_evaluation(recipe: Recipe, samples: Samples, eval_samples: Samples | None) -> None:
    """What the protocols will ask of the data, so that no run is trained that cannot be judged."""
    if eval_samples is not None and eval_samples.width() != samples.width():
        here, there = (
            f"vectors of {width} values" if width else "images"
            for width in (samples.width(), eval_samples.width())
        )
        raise InputError(f"data.eval_path={recipe.data.eval_path} holds {there} and the training data {here}")
    test = None if eval_samples is None else np.arange(len(eval_samples))
    division = divide(samples.labels, np.arange(len(samples)), samples.split, test)
    asked = recipe.eval.protocols if "protocols" in recipe.eval.model_fields_set and not recipe.resume else ()
    if needing := [name for name in asked if name not in ("rankme", "embedding")]:
        _check_labels(recipe, division, eval_samples, needing)
    evaluate.check(division, recipe.eval)


def _check_labels(
    recipe: Recipe, division: Division, eval_samples: Samples | None, protocols: Sequence[str]
) -> None:
    named = f"eval.protocols={','.join(protocols)}"
    if not len(division.test):
        few = "none" if division.labels is None or not (division.labels >= 0).any() else "too few"
        raise InputError(
            f"{named} needs labels and {recipe.data.name} has {few}; use eval.protocols=[rankme] or data with labels"
        )
    if eval_samples is not None and eval_samples.labels is None:
        raise InputError(f"{named} needs labels and data.eval_path={recipe.data.eval_path} has none")
