"""Embed a data set with a trained encoder into one Parquet file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raysurl.errors import InputError
from raysurl.paths import new_place, whole
from raysurl.recipe import take

SETTINGS = {
    "run": ("DIR | FILE", "", "a finished run, or an encoder.safetensors"),
    "to": ("FILE.parquet", "", "what is written; it must not be there yet"),
}
RECIPE = ("data", "eval.batch_size")  # its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`embed.py run=DIR|FILE to=FILE.parquet [data.…]`: a row per image, and what made it.

    Columns index, name, path, row, label, pixels, height, width, embedding (D float32). `path` is relative to the
    data's root, `row` −1 where a file is one sample, `pixels` a digest of the decoded image. In the metadata of the
    schema stand, as JSON under `raysurl`: class names by label, the data and their root, the model, the commit of this
    program. What was interrupted goes on when the same line is given again.
    """
    mine, rest = take(arguments, "to")
    target = new_file(
        mine.get("to", ""), ".parquet"
    )  # at once: what follows imports torch and opens the data
    from raysurl.curation.embedding import write_embeddings

    write_embeddings(rest, target)


def new_file(given: str, *kinds: str) -> Path:
    """The file to write, whose name ends as one of `kinds`. Raises InputError for one that is there, or cannot be."""
    if not given.endswith(kinds):
        raise InputError(f"name the file to write: {' or '.join(f'to=FILE{kind}' for kind in kinds)}")
    return new_place("to", given)


def write_new(write: Callable[[Any, Any], object], table: Any, target: Path) -> None:
    """Written with its folder: whole, or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as partial, partial.open("wb") as file:
        write(table, file)
