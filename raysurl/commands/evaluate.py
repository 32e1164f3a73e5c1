"""Evaluate a finished run, or any encoder file, on labelled data."""

from __future__ import annotations

import json
from collections.abc import Sequence

from raysurl.data.names import open_samples
from raysurl.encoder import named_encoder
from raysurl.evaluate.evaluator import Evaluator, Networks
from raysurl.recipe import take
from raysurl.report.terminal import show_metrics
from raysurl.runtime import LocalRuntime, default_device
from raysurl.train import local
from raysurl.train.run_directory import write_atomic


def main(arguments: Sequence[str]) -> None:
    """`evaluate.py run=DIR|FILE [data.… eval.… key=value]`: prints the table, writes `evaluation.json` beside it."""
    found = named_encoder(take(arguments)[1])
    recipe, device = found.recipe, default_device()
    samples = open_samples(recipe.data, "train", seed=recipe.stream_seed)
    eval_samples = open_samples(recipe.data, "eval", seed=recipe.stream_seed)
    assert samples is not None
    source, eval_source = local.open_sources(recipe, samples, eval_samples)
    evaluator = Evaluator(recipe, LocalRuntime(device), source, eval_source)
    metrics = evaluator.final(Networks(found.encoder.to(device))).metrics
    write_atomic(found.where / "evaluation.json", json.dumps({"metrics": metrics}, indent=1))
    for note in evaluator.notes:
        print(note)
    show_metrics(metrics, str(found.where))
