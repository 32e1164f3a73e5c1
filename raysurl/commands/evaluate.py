"""Evaluate a finished run, or any encoder file, on labelled data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from raysurl import intervals
from raysurl.classifier import write_classifiers
from raysurl.data.names import open_samples
from raysurl.encoder import TrainedEncoder, named_encoder
from raysurl.evaluate.evaluator import Evaluator, check_views
from raysurl.recipe import take
from raysurl.report.terminal import show_metrics
from raysurl.runtime import LocalRuntime, default_device
from raysurl.train import local, stored
from raysurl.train.run_directory import write_atomic

SETTINGS = {"run": ("DIR | FILE", "", "a finished run, or an encoder.safetensors")}
RECIPE = ("data", "eval")  # its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`evaluate.py run=DIR|FILE [data.… eval.… key=value]`: prints the table, writes `evaluation.json` beside it."""
    found = named_encoder(take(arguments)[1])
    written, said = evaluated(found, default_device())
    for note in said:
        print(note)
    show_metrics(written["metrics"], str(found.where), written["intervals"], written["gains"])


def evaluated(found: TrainedEncoder, device: torch.device) -> tuple[dict[str, Any], list[str]]:
    """Metrics, intervals and gains, which are written beside the encoder too, and sentences to be said.

    Raises InputError for data that the protocols cannot judge by.
    """
    recipe = found.recipe
    samples = open_samples(recipe.data, "train", seed=recipe.stream_seed)
    eval_samples = open_samples(recipe.data, "eval", seed=recipe.stream_seed)
    assert samples is not None
    check_views(recipe, samples)
    source, eval_source = local.open_sources(recipe, samples, eval_samples)
    evaluator = Evaluator(recipe, LocalRuntime(device), source, eval_source)
    networks, said = stored.networks(found.where, recipe, found.encoder, source)
    final = evaluator.final(networks.to(device), stored.untrained_embedder(recipe, source))
    between = intervals.of_metrics(final.metrics)
    written = {"metrics": final.metrics, "intervals": between, "gains": final.gains}
    write_atomic(found.where / "evaluation.json", json.dumps(written, indent=1))
    write_classifiers(found.where, final.classifiers, recipe, source)
    return written, [*evaluator.notes, *said]
