"""The images nearest to an image: it is embedded as those of the index were, and looked up.

Letters: Q queries, k neighbours.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysurl.curation.given import write_list
from raysurl.curation.pages import brief, figure, gallery, row_card, short_names, write_page
from raysurl.curation.pictures import Pictures, small
from raysurl.curation.rows import Rows, columns_of, unit
from raysurl.curation.stored_index import ENCODER, StoredIndex
from raysurl.data.dataset import Samples, Unreadable
from raysurl.data.manifest import Listing
from raysurl.data.names import measured, open_samples
from raysurl.data.readers import FileReader
from raysurl.data.source import open_source
from raysurl.data.tree import FileEntry
from raysurl.embed import embed
from raysurl.encoder import NAME, TrainedEncoder, load_encoder
from raysurl.errors import InputError
from raysurl.paths import given_path, sha256
from raysurl.recipe import Data
from raysurl.runtime import default_device

SHOWN_QUERIES = 50


@dataclass(frozen=True, eq=False)
class Found:
    """`rows` and `cosines` (Q, k): rows of the index, the nearest first, −1 for none. `names` (Q,): of the queries."""

    names: list[str]
    rows: NDArray[np.int64]
    cosines: Rows
    queries: Samples


def search_images(index: StoredIndex, image: str, k: int = 10, run: str | None = None) -> Found:
    """The k rows of an index nearest to an image file, or to each image of a folder.

    `run`: the run or encoder file that made the embeddings; by default the one that lies in the index's folder. Raises
    InputError for another network, for fewer rows than k, and for what is no image.
    """
    if k > len(index):
        raise InputError(f"k={k} is more than the {len(index)} images of the index")
    encoder = encoder_of_index(index, run)
    queries = images_at(image, encoder)
    rows = embedded(queries, encoder)
    if rows.shape[1] != index.dim:
        raise InputError(
            f"the encoder gives {rows.shape[1]} values and the index has rows of {index.dim}; name its run"
        )
    cosines, found = index.search(rows, k)
    return Found([queries.name_of(i) for i in range(len(queries))], found, np.minimum(cosines, 1), queries)


def encoder_of_index(index: StoredIndex, run: str | None) -> TrainedEncoder:
    """The network that made the rows of an index. Raises InputError where it is not at hand, or is another one."""
    if run is None and not (index.folder / ENCODER).is_file():
        raise InputError(
            f"index={index.folder} holds no encoder, for it was no longer where it was when the images were embedded;"
            " name the run that made them, run=DIR"
        )
    path = index.folder / ENCODER if run is None else given_path("run", run)
    file = path / NAME if path.is_dir() else path
    if run is not None and index.model and file.is_file() and sha256(file) != index.model:
        raise InputError(f"run={path} is not the run that made the embeddings of index={index.folder}")
    return load_encoder(str(path))


def images_at(given: str, encoder: TrainedEncoder) -> Samples:
    """The image of a file, or the images of a folder by name. Raises InputError where there is none."""
    path = given_path("image", given).absolute()
    if not path.exists():
        raise InputError(f"image={path} is not there; name an image, or a folder of images")
    plain = Data(name="folder", path=str(path), labels="none", max_unreadable=1.0)
    if path.is_dir():
        samples = open_samples(plain, "train", seed=0, depth=encoder.depth)
    else:
        state = path.stat()
        entry = FileEntry(path.name, state.st_size, state.st_mtime_ns)
        samples = Samples(
            Listing.of_files(os.fspath(path.parent), [entry]), FileReader(os.fspath(path.parent))
        )
        samples = measured(samples, plain, "train", encoder.depth)
    readable = np.ones(len(samples), bool)
    for start in range(0, len(samples), 512):
        bad = samples.unreadable(np.arange(start, min(start + 512, len(samples))))
        readable[[sample.index for sample in bad]] = False
        if bad and len(samples) == 1:
            raise InputError(f"image={bad[0]} cannot be looked up; name an image, or a folder of images")
        for sample in bad:
            print(f"skipped {sample}")
    if not readable.any():
        raise InputError(f"image={path} holds no image that can be read")
    return samples.select(np.flatnonzero(readable))


def embedded(queries: Samples, encoder: TrainedEncoder) -> Rows:
    """(Q, D) unit rows of images that can be read."""
    source = open_source(queries, encoder.recipe.data)
    device = default_device()
    network = encoder.encoder.to(device)
    rows = embed(network, source, encoder.recipe, device, np.arange(len(queries))).numpy()
    return unit(rows, 0, "the images that are looked up")


# -------------------------------------------------------------------- what is written


def write_found(folder: Path, index: StoredIndex, found: Found) -> list[str]:
    """results.csv, .parquet, .json and page.html; returns the lines to print: similarity and name."""
    query, rank = np.nonzero(found.rows >= 0)
    rows = found.rows[query, rank]
    columns: dict[str, Any] = {
        "query": [found.names[q] for q in query],
        "rank": rank + 1,
        **columns_of(index.table, rows),
        "similarity": found.cosines[query, rank],
    }
    write_list(pa.table(columns), folder, "results")
    _page(folder, index, found)
    said, before = [], -1
    names = columns["name"].to_pylist()
    for q, cosine, name in zip(query.tolist(), columns["similarity"].tolist(), names, strict=True):
        if q != before and len(found.names) > 1:
            said.append(found.names[q])
        said.append(f"{cosine:.4f}  {name}")
        before = q
    return [*said, f"contact sheet: {folder / 'page.html'}"]


def _page(folder: Path, index: StoredIndex, found: Found) -> None:
    pictures = Pictures(index.table, index.about["of"])
    some = range(min(len(found.names), SHOWN_QUERIES))
    shown = pictures.of(found.rows[: len(some)][found.rows[: len(some)] >= 0])
    cards = ""
    for q, own in zip(some, found.queries.load(np.arange(len(some))), strict=True):
        rows = [row for row in found.rows[q].tolist() if row >= 0]
        names = short_names(index.table, np.array(rows, np.int64))
        captions = [
            (f"{cosine:.4f}", name) for cosine, name in zip(found.cosines[q].tolist(), names, strict=False)
        ]
        asked = None if isinstance(own, Unreadable) or own.ndim != 3 else small(own)
        first = figure(asked, ("looked up", ""), marked=True)
        cards += row_card(brief(found.names[q], 90), "", gallery(rows, shown, captions, first=first))
    measured = index.about
    lead = (
        f"The {found.rows.shape[1]} nearest of {len(index):,} images by the cosine of their embeddings. The index"
        f" ({measured['kind']}) finds {measured['recall']:.1%} of the 10 nearest."
    )
    more = f"The first {len(some)} of {len(found.names):,}." if len(some) < len(found.names) else ""
    write_page(folder, "Nearest images", lead, [("Images", cards, more)], pictures)
