"""Find images of a test set that have a copy in the training set."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.curation.given import flag, new_folder, number
from raysurl.errors import InputError, RunError
from raysurl.recipe import take

SETTINGS = {
    "train": ("FILE.parquet", "", "embeddings of the training images, as `raysurl embed` wrote them"),
    "test": ("FILE.parquet", "", "embeddings of the test images, by the same run"),
    "run": ("DIR | FILE", "", "or a run that embeds data.path and data.eval_path first"),
    "output": ("DIR", "", "the folder to write; it must not be there yet"),
    "threshold": ("number", "0.9", "cosine from which on two images are copies, above 0 and up to 1"),
    "whiten": ("true | false", "true", "take out what all images share before they are compared"),
    "fail": ("true | false", "false", "end with exit code 1 where a copy is found"),
}
RECIPE = ("data", "eval.batch_size")  # with run=: its other arguments, and all others of a recipe


def main(arguments: Sequence[str]) -> None:
    """`leaks.py train=FILE.parquet test=FILE.parquet output=DIR [threshold=0.9] [fail=true]`; run= embeds both.

    Copies are as `raysurl duplicates` finds them. Writes leaks.csv, .parquet and .json (a row for each pair of a test
    and a train image), test.txt (names of the test images that have a copy), and page.html. The exit code is 0 whether
    or not there are any; with fail=true it is 1 where there are.
    """
    mine, rest = take(arguments, *SETTINGS)
    named = [mine[key] for key in ("train", "test") if mine.get(key)]
    if bool(mine.get("run")) == bool(named) or (named and (rest or len(named) < 2)):
        raise InputError(
            "name what to compare: train=FILE.parquet and test=FILE.parquet, or run=DIR and the data, and nothing more"
        )
    folder = new_folder(mine.get("output"), holds=("train.parquet", "test.parquet"))
    threshold = number(mine, "threshold", 0.9, "a cosine above 0 and up to 1", lambda t: 0 < t <= 1)
    fail, whiten = flag(mine, "fail", False), flag(mine, "whiten", True)
    from raysurl.curation.copies import leaks
    from raysurl.curation.copies_page import write_leaks
    from raysurl.curation.embedding import write_embeddings
    from raysurl.curation.rows import read_embeddings

    if not named:
        named = [str(folder / "train.parquet"), str(folder / "test.parquet")]
        write_embeddings({**rest, "run": mine["run"]}, folder / "train.parquet")
        write_embeddings({**rest, "run": mine["run"]}, folder / "test.parquet", "eval")
    train, test = (read_embeddings(file, key) for file, key in zip(named, ("train", "test"), strict=True))
    found = leaks(train, test, threshold, whiten=whiten)
    for sentence in write_leaks(folder, train, test, found):
        print(sentence)
    if fail and len(found.leaked):
        raise RunError(
            f"{len(found.leaked)} of {len(test)} test images have a copy among the training images"
        )
