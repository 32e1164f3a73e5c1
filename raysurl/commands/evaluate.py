"""Evaluate a finished run, any encoder file, or a teacher, on labelled data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raysurl import intervals, plain
from raysurl.classifier import write_classifiers
from raysurl.data import storage
from raysurl.data.names import open_samples
from raysurl.encoder import TrainedEncoder, check_width, named_encoder
from raysurl.evaluate.augmenting import check_views
from raysurl.evaluate.division import SEEN
from raysurl.evaluate.elsewhere import judged
from raysurl.evaluate.evaluator import Evaluator, Networks
from raysurl.evaluate.unfinished import Unfinished
from raysurl.recipe import MOST_THREADS, Data, read_stored, take
from raysurl.report.terminal import show_metrics
from raysurl.run import check_judging
from raysurl.runtime import LocalRuntime, default_device, threads_of
from raysurl.teachers.judged import NamedTeacher, named_teacher
from raysurl.train import local, stored
from raysurl.train.run_directory import write_atomic

SETTINGS = {"run": ("DIR | FILE", "", "a finished run, or an encoder.safetensors; none: teacher.name")}
RECIPE = ("data", "eval", "teacher")  # its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`evaluate.py run=DIR|FILE [data.… eval.… key=value]`: prints the table, writes `evaluation.json` beside it.

    `teacher.name=` in place of `run=` judges a network of another library; its results go to `output=DIR`.
    """
    given = take(arguments)[1]
    teacher = named_teacher(given) if given.get("teacher.name") and not given.get("run") else None
    found = teacher.found if teacher else named_encoder(given)
    asked = found.recipe.eval.protocols if "eval.protocols" in given else ()
    written, said = evaluated(found, default_device(), asked, teacher)
    for note in said:
        print(note)
    show_metrics(written["metrics"], str(found.where), written["intervals"], written["gains"])


def evaluated(
    found: TrainedEncoder,
    device: torch.device,
    asked: Sequence[str] = (),
    teacher: NamedTeacher | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Metrics, intervals and gains, which are written beside the encoder too, and sentences to be said.

    `asked`: the protocols that must not be left out for want of labels. Raises InputError for data that the protocols
    cannot judge by.
    """
    recipe = found.recipe
    # as many as the run had: the order of a sum, and so its last digit, is theirs
    torch.set_num_threads(_threads(found.where) or threads_of(local.placed(recipe).scale.threads, device))
    samples, eval_samples = (
        open_samples(recipe.data, split, seed=recipe.stream_seed, depth=found.depth)
        for split in ("train", "eval")
    )
    assert samples is not None
    for each in (samples, eval_samples):
        if each is not None:
            check_width(recipe, each.width())
    if teacher:
        check_views(recipe, samples)
    else:
        check_judging(recipe, samples, eval_samples, asked)
    source, eval_source = local.open_sources(recipe, samples, eval_samples)
    said = [line for opened in filter(None, (source, eval_source)) for line in opened.sentences()]
    unfinished = Unfinished(found.where)
    evaluator = Evaluator(recipe, LocalRuntime(device), source, eval_source, unfinished)
    if teacher:
        networks, notes = Networks(found.encoder, texts=teacher.embed_names(source.class_names)), list[str]()
    else:
        networks, notes = stored.networks(found.where, recipe, found.encoder, source)
    final = judged(evaluator, networks.to(device), stored.untrained_embedder(recipe, source))
    between = intervals.of_metrics(final.metrics)
    written = {"metrics": final.metrics, "intervals": between, "gains": final.gains}
    write_atomic(found.where / "evaluation.json", json.dumps(written, indent=1))
    write_classifiers(found.where, final.classifiers, recipe, source)
    unfinished.forget()
    own = evaluator.notes if of_the_run(found) else [n.removesuffix(f"; {SEEN}") for n in evaluator.notes]
    return written, [*said, *own, *notes]


def _threads(where: Path) -> int | None:
    """Of each worker of the run in this folder; None where that is not known."""
    found = plain.found_in(where / "results.json").get("threads")
    return found if isinstance(found, int) and 0 < found <= MOST_THREADS else None


def of_the_run(found: TrainedEncoder) -> bool:
    """Whether the data are those that the run was trained on, by its recipe; not known of a file alone."""
    if not (found.where / "recipe.yaml").is_file():
        return False
    then, now = Data(**read_stored(found.where).get("data", {})), found.recipe.data
    paths = [data.path and storage.absolute(data.path) for data in (then, now)]
    return then.name == now.name and paths[0] == paths[1]
