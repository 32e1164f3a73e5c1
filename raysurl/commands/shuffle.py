"""Write a data set once in random order, so that what is read in groups is mixed however small a window is."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

from raysurl.data.names import open_samples
from raysurl.errors import InputError
from raysurl.paths import place
from raysurl.recipe import load_recipe, take

WRITER = "raysurl.scale.shuffle"  # Ray is imported only when something is written
SETTINGS = {
    "to": ("DIR", "", "what is written; it must not be there yet, and every node of the cluster sees it")
}
RECIPE = ("data", "seed")  # its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`shuffle.py data.path=DIR|URI to=FOLDER [data.name=…] [seed=0] [data.…]`: Parquet files of image, label, name.

    Images keep their bytes and labels what the data call them; `name` and `index` are those of the data set that was
    read, whose listing is kept beside the files. A command that was stopped goes on where it was.
    """
    mine, rest = take(arguments, *SETTINGS)
    if wrong := [key for key in rest if key.partition(".")[0] not in ("data", "seed")]:
        raise InputError(f"argument {wrong[0]}= is not known; shuffle takes to=, seed= and data.…")
    recipe = load_recipe([f"{key}={value}" for key, value in rest.items()])
    if not mine.get("to"):
        raise InputError("name the folder to write: to=FOLDER, one that every node of the cluster sees")
    if recipe.data.path is None:
        raise InputError(f"data.name={recipe.data.name} has no data.path=; name what to read")
    target = place("to", mine["to"])
    if os.path.lexists(target):
        raise InputError(f"to={target} exists already; name another folder")
    samples = open_samples(recipe.data, "train", seed=recipe.seed)
    count = importlib.import_module(WRITER).shuffle(
        samples,
        target,
        seed=recipe.seed,
        max_unreadable=recipe.data.max_unreadable,
        progress=lambda what, done, of: print(f"{what} {done} of {of}", flush=True),
    )
    print(f"{count:,} samples in random order: data.name=parquet data.path={target}")
