"""A run as a library function: everything checkable is checked, then it is trained, evaluated and reported."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from raysurl import build, evaluate, metrics, plugins, stopping, teachers
from raysurl.data import names
from raysurl.data.names import Samples, open_samples
from raysurl.encoder import encoder_of, initial_weights
from raysurl.errors import InputError, storage_error
from raysurl.evaluate import Division, detecting, divide, elsewhere
from raysurl.evaluate.augmenting import check_views
from raysurl.nets import encoders
from raysurl.overview import write_map
from raysurl.paths import given_path
from raysurl.recipe import Recipe
from raysurl.recipe.evaluation import PROTOCOLS
from raysurl.recipe.method_config import built_in
from raysurl.report import write_report
from raysurl.report.progress import announce, watching
from raysurl.train import advice, cost, run_directory

RUNTIMES = {
    "local": "raysurl.train.local",
    "ray": "raysurl.scale.train",
}  # Ray is imported only when it is used
Watching = Callable[[Path], AbstractContextManager[None]]
Measure = Callable[[Recipe, Samples], tuple[cost.Pace | None, int]]  # and the number of workers


def pretrain(recipe: Recipe, watch: Watching = watching) -> Path:
    """Train and evaluate as the recipe says; returns the run directory. Raises InputError or RunError.

    `watch` (run directory) is around the work, and shows it or hears of it.
    """
    samples = open_samples(recipe.data, "train", seed=recipe.stream_seed)
    eval_samples = open_samples(recipe.data, "eval", seed=recipe.stream_seed)
    recipe = build.resolve(recipe, samples.width())
    division = check(recipe, samples, eval_samples)
    runtime = importlib.import_module(RUNTIMES[recipe.runtime])
    runtime.check(recipe)
    recipe, said = priced(recipe, samples, division, runtime.measure)
    if recipe.data.limit is not None and recipe.data.limit < len(samples):
        samples = open_samples(recipe.data, "train", seed=recipe.stream_seed)
        division = check(recipe, samples, eval_samples)
    said += advice.remarks(recipe, len(samples), division)
    with run_directory.claim(recipe) as (recipe, run_dir):
        try:
            with watch(run_dir):
                metrics.note(run_dir, said)
                runtime.run(recipe, samples, eval_samples, run_dir)
            write_map(run_dir)
            write_report(run_dir)
        except InputError:
            if not recipe.resume and not (run_dir / "checkpoints").exists():
                shutil.rmtree(run_dir)  # ours and empty but for notes: the next try may have the name
            raise
        except stopping.StoppedError as stop:
            again = stopping.command_line("pretrain", [f"output={run_dir}", "resume=true"])
            stop.how = f"what is done is kept, continue with: {again}"
            raise
        except OSError as error:
            raise storage_error(error, run_dir) or error from None
    return run_dir


def priced(
    recipe: Recipe, samples: Samples, division: Division, measure: Measure
) -> tuple[Recipe, list[str]]:
    """The recipe cut to its preset, whose numbers are its own then, and sentences on what the run will cost."""
    steps = recipe.total_epochs * (len(samples) // recipe.train.batch_size)
    cut = recipe.preset in cost.BUDGETS
    if recipe.resume or (steps < cost.LEAST_STEPS and not cut):
        return recipe.model_copy(update={"preset": None}), []
    announce(f"a few steps on {len(samples):,} samples are tried, to say what the run will cost")
    found, workers = measure(recipe, samples)
    if found is None:
        if cut:
            raise InputError(
                f"preset={recipe.preset} needs a few trial steps, which fail on these data; name train.epochs= instead"
            )
        return recipe.model_copy(update={"preset": None}), []
    sizes = cost.Sizes(len(samples), len(division.bank) + len(division.test), len(division.bank))
    said = []
    if cut:
        before, recipe = recipe, cost.fitted(recipe, found, sizes, workers)
        said.append(cost.changes(before, recipe))
        count = min(len(samples), recipe.data.limit or len(samples))
        sizes = sizes.of(count)
    said.append(cost.sentence(recipe, found, sizes, workers))
    return recipe.model_copy(update={"preset": None}), said


def check(recipe: Recipe, samples: Samples, eval_samples: Samples | None) -> Division:
    """What can be known of a resolved recipe before any worker starts; how its data are divided. Raises InputError."""
    _check_names(recipe)
    if len(samples) < 2:
        raise InputError(f"data.path={recipe.data.path} holds one sample; training needs two or more")
    if recipe.train.batch_size > len(samples):
        raise InputError(
            f"train.batch_size={recipe.train.batch_size} is larger than the data, {len(samples)} samples;"
            f" use at most {len(samples)}"
        )
    recipe.method.check(len(samples))
    samples.nbytes_estimate()  # decodes a few: a data set of which nothing can be read is refused here
    encoder = encoder_of(recipe)
    if recipe.init_from:
        initial_weights(recipe.init_from, encoder)
    if teacher := build.teacher_of(recipe, len(samples), samples.labels):
        teachers.check_input(teacher, str(recipe.teacher.name), samples.width(), recipe.views.size)
    if (name := recipe.teacher.name) and name.endswith(".parquet"):
        teachers.check_names(given_path("teacher.name", name), samples)
    return _check_evaluation(recipe, samples, eval_samples)


def _check_names(recipe: Recipe) -> None:
    """Raises InputError where an installed package offers a built-in name that the recipe has."""
    method, data, encoder = recipe.method.name, recipe.data.name, recipe.encoder.name
    if method in built_in():
        plugins.refuse_shadow("method", method)
    if names.built_in(data):
        plugins.refuse_shadow("data", data)
    if encoders.built_in(encoder):
        plugins.refuse_shadow("encoder", encoder)
    for protocol in set(recipe.eval.protocols) & set(PROTOCOLS):
        plugins.refuse_shadow("protocol", protocol)


def _check_evaluation(recipe: Recipe, samples: Samples, eval_samples: Samples | None) -> Division:
    """What the protocols will ask of the data, so that no run is trained that cannot be judged."""
    if eval_samples is not None and eval_samples.width() != samples.width():
        here, there = (
            f"vectors of {width} values" if width else "images"
            for width in (samples.width(), eval_samples.width())
        )
        raise InputError(f"data.eval_path={recipe.data.eval_path} holds {there} and the training data {here}")
    asked = recipe.eval.protocols if "protocols" in recipe.eval.model_fields_set and not recipe.resume else ()
    return check_judging(recipe, samples, eval_samples, asked)


def check_judging(
    recipe: Recipe, samples: Samples, eval_samples: Samples | None, asked: Sequence[str]
) -> Division:
    """How the data are divided. Raises InputError where the protocols cannot judge by them, or by those of elsewhere;
    `asked`: the protocols that must not be left out for want of labels."""
    division = division_of(samples, eval_samples)
    check_targets(recipe, division, eval_samples, asked)
    evaluate.check(division, recipe.eval)
    check_views(recipe, samples)
    detecting.check(recipe, samples, eval_samples)
    for name, there, (train, test) in elsewhere.opened(recipe):
        try:
            check_judging(there, train, test, there.eval.protocols)
        except InputError as error:
            raise InputError(f"eval.elsewhere.{name}: {error}") from None
    return division


def divisions_elsewhere(recipe: Recipe) -> dict[str, Division]:
    """How the data of `eval.elsewhere` are divided, by name."""
    return {name: division_of(train, test) for name, _, (train, test) in elsewhere.opened(recipe)}


def division_of(samples: Samples, eval_samples: Samples | None) -> Division:
    """Which samples will be compared with which, if all can be read."""
    test = None if eval_samples is None else np.arange(len(eval_samples))
    return divide(samples.labels, np.arange(len(samples)), samples.split, test, tags=samples.tags)


def check_targets(
    recipe: Recipe, division: Division, eval_samples: Samples | None, protocols: Sequence[str]
) -> None:
    """Raises InputError where the data have no labels, or no tags, by which the protocols could judge."""
    either = "tags" if division.num_tags else "labels"
    wanted = {name: evaluate.needs(name) for name in protocols}
    by = {
        what: [
            name for name, asked in wanted.items() if what in asked or ("targets" in asked and what == either)
        ]
        for what in ("labels", "tags")
    }
    if by["labels"]:
        _check_labels(recipe, division, eval_samples, by["labels"])
    if by["tags"] and not (division.num_tags and len(division.test)):
        few = "no test set" if division.num_tags else "none"
        raise InputError(
            f"eval.protocols={','.join(by['tags'])} needs images of several classes each, as data.name=voc:2007 has,"
            f" for training and for the test; {recipe.data.name} has {few}"
        )


def _check_labels(
    recipe: Recipe, division: Division, eval_samples: Samples | None, protocols: Sequence[str]
) -> None:
    named = f"eval.protocols={','.join(protocols)}"
    if not len(division.test) or division.num_tags:
        few = "none" if division.labels is None or not (division.labels >= 0).any() else "too few"
        raise InputError(
            f"{named} needs labels and {recipe.data.name} has {few}; use eval.protocols=[rankme] or data with labels"
        )
    if eval_samples is not None and eval_samples.labels is None:
        raise InputError(f"{named} needs labels and data.eval_path={recipe.data.eval_path} has none")
