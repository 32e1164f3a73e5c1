"""Embed a data set with a trained encoder into one Parquet file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysurl.data.names import open_samples
from raysurl.embed import embed
from raysurl.encoder import named_encoder
from raysurl.errors import InputError
from raysurl.recipe import take
from raysurl.runtime import default_device
from raysurl.train import local
from raysurl.train.run_directory import place


def main(arguments: Sequence[str]) -> None:
    """`embed.py run=DIR|FILE to=FILE.parquet [data.…]`: columns index, name, label, embedding (D float32).

    Class names by label are in the metadata of the schema, as JSON under `raysurl`.
    """
    mine, rest = take(arguments, "to")
    found = named_encoder(rest)
    recipe, device = found.recipe, default_device()
    if not mine.get("to", "").endswith(".parquet"):
        raise InputError("name the file to write: to=FILE.parquet")
    target = place("to", mine["to"])
    if target.exists():
        raise InputError(f"to={target} exists already; name another file")
    samples = open_samples(recipe.data, "train", seed=recipe.stream_seed)
    assert samples is not None
    source, _ = local.open_sources(recipe, samples, None)
    index = np.flatnonzero(source.readable)
    features = embed(found.encoder.to(device), source, recipe, device, index).numpy()
    columns = {
        "index": index,
        "name": [samples.name_of(int(i)) for i in index],
        "label": samples.original_labels()[index],
        "embedding": pa.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1]),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    names = {"raysurl": json.dumps({"class_names": samples.names_by_value()})}
    partial = target.with_name(f".{target.name}.partial")
    try:
        pq.write_table(pa.table(columns).replace_schema_metadata(names), partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{len(index)} embeddings of {features.shape[1]} dimensions: {target}")
    for skipped in source.skipped:
        print(f"skipped {skipped}")
