"""Predict the classes of images with a classifier that was fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raysurl.errors import InputError
from raysurl.paths import new_file, whole
from raysurl.recipe import of_one_set, take

SETTINGS = {
    "run": ("DIR | FILE", "", "a run that was fine-tuned, or its classifier-NAME.safetensors"),
    "to": ("FILE.csv | FILE.parquet", "", "what is written; it must not be there yet"),
}
RECIPE = ("data", "eval.batch_size")  # its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`predict.py run=DIR|FILE data.path=FOLDER to=FILE.csv|FILE.parquet [data.…]`: columns name, class, probability.

    A class is called as the training data called it: by name, or else by number.
    """
    mine, rest = take(arguments, *SETTINGS)
    if not mine.get("run"):
        raise InputError(
            "name what to use: run=DIR of a run that was fine-tuned, or run=FILE of its classifier"
        )
    # at once: what follows imports torch and opens the data
    target = new_file("to", mine.get("to", ""), ".csv", ".parquet")
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq
    import torch

    from raysurl.classifier import load_classifier
    from raysurl.data.names import open_samples
    from raysurl.embed import embed
    from raysurl.encoder import check_width
    from raysurl.runtime import default_device
    from raysurl.train import local

    found, device = load_classifier(mine["run"], of_one_set(rest)), default_device()
    samples = open_samples(found.recipe.data, "train", seed=found.recipe.stream_seed, depth=found.depth)
    check_width(found.recipe, samples.width())
    source, _ = local.open_sources(found.recipe, samples, None)
    print(*source.sentences(), sep="\n")
    index = np.flatnonzero(source.readable)
    scores = embed(found.network.to(device), source, found.recipe, device, index)
    probability, chosen = torch.softmax(scores.double(), 1).max(1)
    called = found.names or found.values
    columns = {
        "name": [samples.name_of(int(i)) for i in index],
        "class": [called[at] for at in chosen.tolist()],
        "probability": probability.numpy(),
    }
    write = pq.write_table if target.suffix == ".parquet" else pyarrow.csv.write_csv
    write_new(write, pa.table(columns), target)
    print(f"{len(index)} predictions: {target}")


def write_new(write: Callable[[Any, Any], object], table: Any, target: Path) -> None:
    """Written with its folder: whole, or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as partial, partial.open("wb") as file:
        write(table, file)
