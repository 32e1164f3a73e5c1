"""Look up the images nearest to an image, or to each of a folder."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.curation.given import count, new_folder
from raysurl.errors import InputError
from raysurl.recipe import take

SETTINGS = {
    "index": ("DIR", "", "what `raysurl index` wrote"),
    "image": ("FILE | DIR", "", "the image to look up, or a folder of them"),
    "output": ("DIR", "", "the folder to write; it must not be there yet"),
    "k": ("whole number", "10", "how many to find for each image"),
    "run": (
        "DIR | FILE",
        "",
        "the run that made the embeddings; by default the encoder that lies in the index",
    ),
}


def main(arguments: Sequence[str]) -> None:
    """`search.py index=DIR image=FILE|DIR output=DIR [k=10]`: prints similarity and name, the nearest first.

    An image is prepared and embedded as those of the index were. Writes page.html, a contact sheet, and results.csv,
    .parquet and .json.
    """
    mine, rest = take(arguments, *SETTINGS)
    if rest:
        raise InputError(f"{next(iter(rest))} is not a setting of search; there are {', '.join(SETTINGS)}")
    for key, what in (("index", "DIR, as `raysurl index` writes it"), ("image", "FILE or DIR")):
        if not mine.get(key):
            raise InputError(f"name {key}={what}")
    folder = new_folder(mine.get("output"), holds=())
    k = count(mine, "k", 10)
    from raysurl.curation.searching import search_images, write_found
    from raysurl.curation.stored_index import open_index

    index = open_index(mine["index"])
    found = search_images(index, mine["image"], k, mine.get("run"))
    print(*write_found(folder, index, found), sep="\n")
