"""The images that rows of embeddings are of, as far as they are still where they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from raysurl.data.dataset import Samples, Unreadable
from raysurl.data.names import Split, open_samples
from raysurl.errors import InputError
from raysurl.recipe import Data
from raysurl.report.page import MAX_PIXELS

Pixels = NDArray[np.uint8]
BLOCK = 64  # images that are decoded at once; they are kept small


class Pictures:
    """Images of the rows of a `table` (path, row), which `about`, the note of an embeddings file, says where to find.

    `why`: one clause on why there are none, empty where there may be. `missing` and `asked` count the images that could
    not be shown, and all that were to be.
    """

    def __init__(self, table: Any, about: Mapping[str, Any]) -> None:
        self.table, self.why = table, ""
        self.missing = self.asked = 0
        self._places = np.full(len(table), -1)
        self._samples: Samples | None = None
        try:
            self._samples = _opened(about)
            self._places = _places(self._samples, table)
        except InputError as error:
            self.why = str(error)

    def of(self, rows: NDArray[np.int64]) -> dict[int, Pixels]:
        """Row number -> pixels (h, w, 3) uint8, no side above `MAX_PIXELS`; without those whose image is missing."""
        found: dict[int, Pixels] = {}
        wanted = np.unique(rows)
        self.asked += len(wanted)
        if self._samples is not None:
            there = wanted[self._places[wanted] >= 0]
            for start in range(0, len(there), BLOCK):
                part = there[start : start + BLOCK]
                for row, image in zip(part, self._samples.load(self._places[part]), strict=True):
                    if not isinstance(image, Unreadable) and image.ndim == 3:
                        found[int(row)] = small(image)
        self.missing += len(wanted) - len(found)
        return found

    def remark(self) -> str:
        """A sentence on the images that could not be shown; empty where all were."""
        if not self.missing:
            return ""
        why = f": {self.why}" if self.why else ""
        return f"{self.missing} of {self.asked} images are no longer where they were and are not shown{why}"


def small(image: NDArray[Any]) -> Pixels:
    """uint8 (3, h, w) -> (h, w, 3), no side above `MAX_PIXELS`."""
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0), np.uint8))
    picture.thumbnail((MAX_PIXELS, MAX_PIXELS))
    return np.asarray(picture)


def _opened(about: Mapping[str, Any]) -> Samples:
    data = about.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("settings"), Mapping):
        raise InputError("the embeddings do not say where their images are")
    try:
        # all of the data, whatever part was embedded, and whatever labels say
        changes = {
            "limit": None,
            "per_class": None,
            "labelled": None,
            "labels": "none",
            "max_unreadable": 1.0,
        }
        settings = Data.model_validate({**data["settings"], **changes})
    except ValidationError:
        raise InputError("the embeddings do not say where their images are") from None
    split: Split = "eval" if data.get("split") == "eval" else "train"
    samples = open_samples(settings, split, seed=0)
    if samples is None:
        raise InputError("the embeddings do not say where their images are")
    return samples


def _places(samples: Samples, table: Any) -> NDArray[np.int64]:
    """(N,) the sample that each row of the table is, by file and row in it; −1 where there is none."""
    listing = samples.listing
    files = pc.index_in(
        table["path"].cast(pa.large_string()),
        value_set=pa.array(listing.paths.to_pylist(), pa.large_string()),
    )
    file = np.asarray(files.fill_null(-1).to_numpy(), np.int64)
    row = np.asarray(table["row"].to_numpy(), np.int64)
    known = (listing.file.astype(np.int64) << 40) | (listing.row + 1)
    order = np.argsort(known, kind="stable")
    wanted = np.where(file < 0, -1, (file << 40) | (row + 1))
    at = np.minimum(np.searchsorted(known[order], wanted), len(order) - 1)
    return np.where(known[order][at] == wanted, order[at], -1)
