"""Find exact and near copies among images, and list what can go."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.curation.given import flag, new_folder, number, read, source_of
from raysurl.recipe import take

SETTINGS = {
    "embeddings": ("FILE.parquet", "", "what `raysurl embed` wrote"),
    "run": ("DIR | FILE", "", "or a run that embeds the data first, into the folder that is written"),
    "output": ("DIR", "", "the folder to write; it must not be there yet"),
    "threshold": ("number", "0.9", "cosine from which on two images are copies, above 0 and up to 1"),
    "whiten": ("true | false", "true", "take out what all images share before they are compared"),
}
RECIPE = ("data", "eval.batch_size")  # with run=: its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`duplicates.py embeddings=FILE.parquet output=DIR [threshold=0.9]`; run= embeds data.… first.

    Two images are exact copies where their decoded pixels are equal, and near ones where the cosine of their embeddings
    is the threshold or more; what such links connect is a group. Of each group the largest image is kept, or the first
    of these. Writes duplicates.csv, .parquet and .json (a row for each image of a group), delete.txt (names of those
    that are not kept), and page.html with the pairs that are nearest to the threshold. No image is touched.
    """
    mine, rest = take(arguments, *SETTINGS)
    named = source_of(mine, rest)
    folder = new_folder(mine.get("output"))
    threshold = number(mine, "threshold", 0.9, "a cosine above 0 and up to 1", lambda t: 0 < t <= 1)
    whiten = flag(mine, "whiten", True)
    found = read(named, mine, rest, folder)
    from raysurl.curation.copies import duplicates
    from raysurl.curation.copies_page import write_duplicates

    for sentence in write_duplicates(folder, found, duplicates(found, threshold, whiten=whiten)):
        print(sentence)
