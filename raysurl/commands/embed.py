"""Embed a data set with a trained encoder into one Parquet file."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.paths import new_file
from raysurl.recipe import of_one_set, take

SETTINGS = {
    "run": ("DIR | FILE", "", "a finished run, or an encoder.safetensors"),
    "to": ("FILE.parquet", "", "what is written; it must not be there yet"),
    "workers": ("whole number", "0", "processes under Ray that embed, each its parts; 0: this process alone"),
}
RECIPE = ("data", "eval.batch_size")  # its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`embed.py run=DIR|FILE to=FILE.parquet [data.…]`: a row per image, and what made it.

    Columns index, name, path, row, label, pixels, height, width, embedding (D float32). `path` is relative to the
    data's root, `row` −1 where a file is one sample, `pixels` a digest of the decoded image. In the metadata of the
    schema stand, as JSON under `raysurl`: class names by label, the data and their root, the model, the commit of this
    program. What was interrupted goes on when the same line is given again, with any number of workers: they are a pool
    of Ray Data on the cluster of RAY_ADDRESS, or on one of its own, and each embeds part after part.
    """
    mine, rest = take(arguments, "to", "workers")
    # at once: what follows imports torch and opens the data
    target = new_file("to", mine.get("to", ""), ".parquet")
    asked = of_one_set(rest)
    from raysurl.curation.given import count

    workers = count(mine, "workers", 0, least=0)
    from raysurl.curation.embedding import write_embeddings

    write_embeddings(asked, target, workers=workers)
