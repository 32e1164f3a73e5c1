"""Find the images that are least like any other."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.curation.given import choice, count, flag, new_folder, read, source_of
from raysurl.recipe import take

SETTINGS = {
    "embeddings": ("FILE.parquet", "", "what `raysurl embed` wrote"),
    "run": ("DIR | FILE", "", "or a run that embeds the data first, into the folder that is written"),
    "output": ("DIR", "", "the folder to write; it must not be there yet"),
    "by": ("lof | knn", "lof", "local outlier factor, or the mean distance to the k nearest others"),
    "k": ("whole number", "50", "neighbours: more than outliers that are alike have; at most all others"),
    "whiten": ("true | false", "true", "take out what all images share before they are compared"),
    "top": ("whole number", "96", "images on the page"),
}
RECIPE = ("data", "eval.batch_size")  # with run=: its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`outliers.py embeddings=FILE.parquet output=DIR [by=lof] [k=50]`; run= embeds data.… first.

    Writes outliers.csv, .parquet and .json, all images with their score, the farthest out first, and page.html.
    """
    mine, rest = take(arguments, *SETTINGS)
    named = source_of(mine, rest)
    folder = new_folder(mine.get("output"))
    by, top, whiten = choice(mine, "by", ("lof", "knn")), count(mine, "top", 96), flag(mine, "whiten", True)
    k = count(mine, "k", 50) if mine.get("k") else None
    found = read(named, mine, rest, folder)
    from raysurl.curation.outlying import outliers
    from raysurl.curation.task_pages import write_outliers

    words = {"knn": "by the mean distance to the nearest others", "lof": "by the local outlier factor"}
    made = outliers(found, k, by, whiten=whiten)  # type: ignore[arg-type]
    print(*write_outliers(folder, found, made, top, words[by]), sep="\n")
