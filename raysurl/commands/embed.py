"""Embed a data set with a trained encoder into one Parquet file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysurl.errors import InputError
from raysurl.paths import given_path, place, whole
from raysurl.recipe import take

if TYPE_CHECKING:
    from raysurl.data.dataset import Samples
    from raysurl.encoder import TrainedEncoder

SETTINGS = {
    "run": ("DIR | FILE", "", "a finished run, or an encoder.safetensors"),
    "to": ("FILE.parquet", "", "what is written; it must not be there yet"),
}
RECIPE = ("data", "eval.batch_size")  # its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`embed.py run=DIR|FILE to=FILE.parquet [data.…]`: columns index, name, path, row, label, embedding (D float32).

    `path` is relative to the data's root, `row` −1 where a file is one sample. In the metadata of the schema stand, as
    JSON under `raysurl`: class names by label, the data and their root, the model, the commit of this program.
    """
    mine, rest = take(arguments, "to")
    target = new_file(
        mine.get("to", ""), ".parquet"
    )  # at once: what follows imports torch and opens the data
    from raysurl.data.names import open_samples
    from raysurl.embed import embed
    from raysurl.encoder import check_width, named_encoder
    from raysurl.runtime import default_device
    from raysurl.train import local

    found = named_encoder(rest)
    recipe, device = found.recipe, default_device()
    samples = open_samples(recipe.data, "train", seed=recipe.stream_seed, depth=found.depth)
    assert samples is not None
    check_width(recipe, samples.width())
    source, _ = local.open_sources(recipe, samples, None)
    print(*source.sentences(), sep="\n")
    index = np.flatnonzero(source.readable)
    features = embed(found.encoder.to(device), source, recipe, device, index).numpy()
    listing = samples.listing
    columns = {
        "index": index,
        "name": [samples.name_of(int(i)) for i in index],
        "path": [listing.path(int(i)) for i in index],
        "row": listing.row[index],
        "label": samples.original_labels()[index],
        "embedding": pa.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1]),
    }
    about = {
        "class_names": samples.names_by_value(),
        **described(given_path("run", rest["run"]), found, samples),
    }
    write_new(
        pq.write_table, pa.table(columns).replace_schema_metadata({"raysurl": json.dumps(about)}), target
    )
    print(f"{len(index)} embeddings of {features.shape[1]} dimensions: {target}")
    if recipe.data.limit and "data.limit" not in rest:
        print(f"the run took data.limit={recipe.data.limit} of the samples; data.limit= embeds all")


def new_file(given: str, *kinds: str) -> Path:
    """The file to write, whose name ends as one of `kinds`. Raises InputError for one that is there, or cannot be."""
    if not given.endswith(kinds):
        raise InputError(f"name the file to write: {' or '.join(f'to=FILE{kind}' for kind in kinds)}")
    target = place("to", given)
    if os.path.lexists(target):
        raise InputError(f"to={target} exists already; name another file")
    there = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise InputError(f"to={target} cannot be written: {there} is no folder that may be written to")
    return target


def described(run: Path, found: TrainedEncoder, samples: Samples) -> dict[str, Any]:
    """What the embeddings are of, and which network made them."""
    from raysurl.encoder import NAME
    from raysurl.train.run_directory import commit, versions

    recipe = found.recipe
    with (run if run.is_file() else run / NAME).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    encoder = recipe.encoder.model_dump(mode="json")
    model = {"run": found.where.name, "method": recipe.method.name, "encoder": encoder, "sha256": digest}
    return {
        "model": model | {"size": recipe.views.size},
        "data": {"name": recipe.data.name, "root": samples.listing.root},
        "commit": commit(),
        "version": versions().get("raysurl"),
    }


def write_new(write: Callable[[Any, Any], object], table: Any, target: Path) -> None:
    """Written with its folder: whole, or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as partial, partial.open("wb") as file:
        write(table, file)
