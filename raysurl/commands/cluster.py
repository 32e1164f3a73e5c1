"""Cluster images, and show each cluster with its medoid."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.curation.given import choice, count, new_folder, read, source_of
from raysurl.errors import InputError
from raysurl.recipe import take

SETTINGS = {
    "embeddings": ("FILE.parquet", "", "what `raysurl embed` wrote"),
    "run": ("DIR | FILE", "", "or a run that embeds the data first, into the folder that is written"),
    "output": ("DIR", "", "the folder to write; it must not be there yet"),
    "by": ("kmeans | hierarchy", "kmeans", "k-means on the unit sphere, or the online hierarchy of RCL"),
    "k": ("whole number", "50", "clusters of k-means"),
    "thresholds": (
        "numbers",
        "by the data",
        "of the hierarchy: falling cosines that unite clusters, one a level",
    ),
    "seed": ("whole number", "0", "of what is drawn"),
}
RECIPE = ("data", "eval.batch_size")  # with run=: its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`cluster.py embeddings=FILE.parquet output=DIR [k=50 | by=hierarchy [thresholds=0.8,0.6]]`; run= embeds first.

    Writes clusters.csv, .parquet and .json, the clusters of each image, medoids.csv, .parquet and .json, a row for each
    cluster with its medoid, and page.html.
    """
    mine, rest = take(arguments, *SETTINGS)
    named = source_of(mine, rest)
    folder = new_folder(mine.get("output"))
    by, k, seed = choice(mine, "by", ("kmeans", "hierarchy")), count(mine, "k", 50), count(mine, "seed", 0, 0)
    thresholds = _thresholds(mine.get("thresholds"))
    found = read(named, mine, rest, folder)
    from raysurl.curation.clustering import cluster
    from raysurl.curation.task_pages import write_clusters

    made = cluster(found, k, by, thresholds=thresholds, seed=seed)  # type: ignore[arg-type]
    words = (
        "k-means"
        if by == "kmeans"
        else f"hierarchy of cosines {', '.join(f'{t:.3f}' for t in made.thresholds)}"
    )
    print(*write_clusters(folder, found, made, words), sep="\n")


def _thresholds(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.strip("[]").split(",")]
    except ValueError:
        values = []
    if (
        not values
        or any(not 0 < value < 1 for value in values)
        or values != sorted(set(values), reverse=True)
    ):
        raise InputError(f"thresholds={text} must be falling cosines between 0 and 1, 0.8,0.6 for example")
    return values
