"""Find the images that are least like any other."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.curation.given import choice, count, new_folder, read, source_of
from raysurl.recipe import take

SETTINGS = {
    "embeddings": ("FILE.parquet", "", "what `raysurl embed` wrote"),
    "run": ("DIR | FILE", "", "or a run that embeds the data first, into the folder that is written"),
    "output": ("DIR", "", "the folder to write; it must not be there yet"),
    "by": ("knn | lof", "knn", "mean distance to the k nearest others, or local outlier factor"),
    "k": ("whole number", "10", "neighbours"),
    "top": ("whole number", "96", "images on the page"),
}
RECIPE = ("data", "eval.batch_size")  # with run=: its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`outliers.py embeddings=FILE.parquet output=DIR [by=knn] [k=10]`; run= embeds data.… first.

    Writes outliers.csv, .parquet and .json, all images with their score, the farthest out first, and page.html.
    """
    mine, rest = take(arguments, *SETTINGS)
    named = source_of(mine, rest)
    folder = new_folder(mine.get("output"))
    by, k, top = choice(mine, "by", ("knn", "lof")), count(mine, "k", 10), count(mine, "top", 96)
    found = read(named, mine, rest, folder)
    from raysurl.curation.outlying import outliers
    from raysurl.curation.task_pages import write_outliers

    words = {
        "knn": f"mean distance to the {k} nearest others",
        "lof": f"local outlier factor of {k} neighbours",
    }
    print(*write_outliers(folder, found, outliers(found, k, by), top, words[by]), sep="\n")  # type: ignore[arg-type]
