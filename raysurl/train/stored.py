"""What a finished run is evaluated by, put together again from its directory."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from raysurl import build
from raysurl.data.source import Source
from raysurl.errors import InputError
from raysurl.evaluate.evaluator import Networks
from raysurl.recipe import Recipe
from raysurl.train import checkpoint


def networks(run_dir: Path, recipe: Recipe, encoder: nn.Module, source: Source) -> tuple[Networks, list[str]]:
    """`encoder` and what `eval.features` names beside it, from the newest checkpoint, and sentences to be said.

    Where the checkpoint is gone kNN is of the backbone, and where memory holds other samples than `source` has it is of
    embeddings on both sides; a sentence says so. Raises InputError for a checkpoint of another recipe.
    """
    named = recipe.eval.features
    if named == "backbone":
        return Networks(encoder), []
    state, said = checkpoint.load_newest(run_dir / "checkpoints", method=recipe.method.name)
    if state is None:
        return Networks(encoder), [
            *said,
            f"{run_dir} holds no checkpoint, and eval.features={named} needs one: kNN is of the backbone",
        ]
    method = build.method_of(recipe, num_samples=len(source.readable), labels=source.labels)
    try:
        method.load_state_dict(state["model"])
    except RuntimeError as error:
        first = checkpoint.reason(error)
        raise InputError(f"the checkpoint in {run_dir} does not fit this recipe: {first}") from None
    embedder = method.eval().embedder
    if named != "memory":
        return Networks(encoder, embedder), said
    remembered = state["memory"]["record"]
    rows = len(source.readable)
    memory = recipe.method.memory(rows, recipe.stream_seed)
    try:
        memory.load_state_dict(remembered)
    except InputError as error:
        return Networks(encoder, embedder), [
            *said,
            f"memory is of other samples ({error}): kNN compares embeddings with embeddings",
        ]
    return Networks(encoder, embedder, memory.snapshot()["features"]), said


def untrained_embedder(recipe: Recipe, source: Source) -> nn.Module | None:
    """The method's embedder with its initial weights; None where kNN is of the backbone or has no baseline."""
    if recipe.eval.features == "backbone" or not recipe.eval.baselines:
        return None
    return build.method_of(recipe, num_samples=len(source.readable), labels=source.labels).embedder
