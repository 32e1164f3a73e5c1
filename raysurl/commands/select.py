"""Choose the images that are worth labelling first."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.curation.given import choice, count, new_folder, read, source_of
from raysurl.recipe import take

SETTINGS = {
    "embeddings": ("FILE.parquet", "", "what `raysurl embed` wrote"),
    "run": ("DIR | FILE", "", "or a run that embeds the data first, into the folder that is written"),
    "output": ("DIR", "", "the folder to write; it must not be there yet"),
    "n": ("whole number", "500", "how many"),
    "by": ("typicality | kcentre | density | random", "typicality", "how they are chosen"),
    "seed": ("whole number", "0", "of what is drawn"),
}
RECIPE = ("data", "eval.batch_size")  # with run=: its other arguments, and all others of a recipe
WORDS = {
    "typicality": "the most typical of each cluster (TypiClust)",
    "kcentre": "so that none is far from a chosen one (k-centre)",
    "density": "the nearest to each mean of k-means weighted by density",
    "random": "at random",
}


def main(arguments: Sequence[str]) -> None:
    """`subset.py embeddings=FILE.parquet output=DIR [n=500] [by=typicality]`; run= embeds data.… first.

    Writes selected.txt, the names in the order in which they were chosen, selected.csv, .parquet and .json, and
    page.html.
    """
    mine, rest = take(arguments, *SETTINGS)
    named = source_of(mine, rest)
    folder = new_folder(mine.get("output"))
    n, by, seed = count(mine, "n", 500), choice(mine, "by", tuple(WORDS)), count(mine, "seed", 0, 0)
    found = read(named, mine, rest, folder)
    from raysurl.curation.selection import select
    from raysurl.curation.task_pages import write_selected

    print(*write_selected(folder, found, select(found, n, by, seed=seed), WORDS[by]), sep="\n")  # type: ignore[arg-type]
