"""Build an index of embeddings in which images can be looked up."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.curation.given import choice, count, new_folder, number, source_of, taken_up
from raysurl.recipe import take

SETTINGS = {
    "embeddings": ("FILE.parquet", "", "what `raysurl embed` wrote"),
    "run": ("DIR | FILE", "", "or a run that embeds the data first, into the folder that is written"),
    "output": ("DIR", "", "the folder to write; it must not be there yet"),
    "kind": (
        "auto | flat | ivf | pq",
        "auto",
        "all rows, cells of rows, or cells of codes; auto: by their number",
    ),
    "recall": ("number", "0.95", "share of the 10 nearest rows to find, by which cells are visited"),
    "seed": (
        "whole number",
        "0",
        "of the rows from which cells are learned, and on which recall is measured",
    ),
}
RECIPE = ("data", "eval.batch_size")  # with run=: its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`index.py embeddings=FILE.parquet output=DIR [kind=auto]`; run= embeds data.… first.

    Flat below 50,000 rows, IVF with rows in half precision while these fit into half of the memory that is free, PQ
    beyond. The recall of the 10 nearest is measured against exact search and stored. What was interrupted goes on when
    the same line is given again.
    """
    mine, rest = take(arguments, *SETTINGS)
    named = source_of(mine, rest)
    folder = new_folder(
        mine.get("output"), holds=("embeddings.parquet", "index.faiss", "rows.parquet", "encoder.safetensors")
    )
    kind = choice(mine, "kind", ("auto", "flat", "ivf", "pq"))
    recall = number(mine, "recall", 0.95, "a share above 0 and up to 1", lambda r: 0 < r <= 1)
    seed = count(mine, "seed", 0, 0)
    file = taken_up(named, mine, rest, folder)
    from raysurl.curation.stored_index import build_index

    found = build_index(str(file), folder, kind, recall=recall, seed=seed)
    cells = "" if found.kind == "flat" else f", {found.visited} of {found.cells} cells visited"
    print(f"{found.rows:,} rows of {found.dim} values, {found.kind}{cells}: {folder}")
    print(f"recall of the 10 nearest {found.recall:.4f}, against exact search for {found.queries} rows")
