"""The map of a run's embeddings as its page shows it, and the near copies and outliers among them.

The points and what is known of them travel as Base64 arrays, which `map.js` draws, their thumbnails as one picture.

Letters: N points, k neighbours.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from raysurl.report import page
from raysurl.report.figures import Arrays, load
from raysurl.report.plotted import embedded, place
from raysurl.report.run import StoredRun

SHEET = "thumbnails.webp"  # of samples/
HEIGHT = 560  # pixels
NAME = 40  # letters of a file's name that are kept
MOST_PIXELS = 50_000_000  # of the picture of all thumbnails
NOTE = (
    "Each point is an image that the run was evaluated on; near points have similar embeddings. Point at one, or touch"
    " it, to see its image; click for its nearest neighbours by cosine. Scroll or pinch to zoom, drag to move."
)
MOST_CLASSES = 1_000_000
NEEDED = {  # dimensions and types
    "points": (2, "f"),
    "index": (1, "iu"),
    "split": (1, "iu"),
    "labels": (1, "iu"),
    "neighbours": (2, "iu"),
    "cosines": (2, "f"),
    "right": (1, "iu"),
    "groups": (1, "iu"),
}
NUMBERS = ("side", "copies", "threshold")


@dataclass(frozen=True)
class RunMap:
    """What the map of a run shows: `arrays` of raysurl.overview, none where there is no map."""

    run: StoredRun

    @cached_property
    def arrays(self) -> Arrays:
        return stored(self.run)

    @cached_property
    def names(self) -> list[str]:
        return _names(self.run, self.arrays)

    @cached_property
    def tiles(self) -> NDArray[np.uint8] | None:
        return _tiles(self.run, self.arrays)

    def labelled(self, i: int) -> str:
        """The class of a point, or what its file is called."""
        label = int(self.arrays["labels"][i])
        return self.run.class_name(label) if label >= 0 else self.names[i]


def section(of: RunMap) -> str:
    """The map with its menu of colours; "" where the run has none."""
    run, arrays = of.run, of.arrays
    if not arrays:
        return ""
    sheet = run.directory / "samples" / SHEET
    side = int(arrays["side"]) if "side" in arrays else 0
    points = arrays["points"].astype("<f4")
    about = {
        "count": len(points),
        "x": _packed(points[:, 0], "<f4"),
        "y": _packed(points[:, 1], "<f4"),
        "neighbours": _packed(arrays["neighbours"], "<u2"),
        "cosines": _packed(np.clip(arrays["cosines"] * 100, 0, 100), "u1"),
        "each": arrays["neighbours"].shape[1],
        "side": side,
        "columns": int(np.ceil(np.sqrt(len(points)))),
        "names": of.names,
        "colours": _colours(run, arrays),
    }
    picture = ""
    if side and sheet.is_file():
        data = base64.b64encode(sheet.read_bytes()).decode()
        picture = f'<img class="sheet-of-all" hidden alt="" src="data:image/webp;base64,{data}">'
    figure = place([], {}, HEIGHT)
    return (
        f'<div class="map">{embedded(about)}{picture}<div class="card">'
        '<div class="menu"><label>Colour <select></select></label><button type="button">Whole map</button></div>'
        f'{figure}<div class="chosen" aria-live="polite"></div></div></div>'
    )


def stored(run: StoredRun) -> Arrays:
    """The arrays of the map; none where one is missing or does not fit the others."""
    arrays = load(run.directory / "samples" / "map.npz")
    if not set(NEEDED) <= arrays.keys():
        return {}
    count = len(arrays["points"]) if arrays["points"].ndim else 0
    for name, (ndim, kinds) in NEEDED.items():
        array = arrays[name]
        if array.ndim != ndim or len(array) != count or array.dtype.kind not in kinds:
            return {}
    near, labels, points = (arrays[name] for name in ("neighbours", "labels", "points"))
    if (
        not 1 < count <= 2**16
        or points.shape[1] != 2
        or not near.size
        or near.shape != arrays["cosines"].shape
    ):
        return {}
    if near.min() < 0 or near.max() >= count or labels.max() >= MOST_CLASSES:
        return {}
    if not (np.isfinite(points).all() and np.isfinite(arrays["cosines"]).all()):
        return {}
    numbers = {name for name in NUMBERS if name in arrays}
    bad = {
        n
        for n in numbers
        if arrays[n].ndim or arrays[n].dtype.kind not in "iuf" or not np.isfinite(arrays[n])
    }
    return {name: array for name, array in arrays.items() if name not in bad}


def _packed(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode()


def _colours(run: StoredRun, arrays: Arrays) -> list[dict[str, Any]]:
    """What points can be coloured by: a name, the value of each point (−1 = unknown), and what values are called."""
    labels = arrays["labels"].astype(np.int64)
    found = []
    if (labels >= 0).any():
        found.append(_colour("class", labels, [run.class_name(i) for i in range(int(labels.max()) + 1)]))
    if (arrays["right"] >= 0).any():
        found.append(_colour("error of kNN", arrays["right"], ["wrong", "right"]))
    clusters = arrays.get("clusters")
    if (
        clusters is not None
        and clusters.ndim == 2
        and clusters.shape[1] == len(labels)
        and clusters.dtype.kind == "i"
    ):
        for level, row in enumerate(clusters, 2):
            found.append(_colour(f"cluster, level {level}", *_by_size(row)))
    found.append(_colour("cluster of k-means", *_by_size(arrays["groups"])))
    if len(np.unique(arrays["split"])) > 1:
        found.append(_colour("split", arrays["split"], ["train", "test"]))
    return found


def _by_size(labels: NDArray[Any]) -> tuple[NDArray[np.int64], list[str]]:
    """Clusters numbered by falling size, and what they are called."""
    known = labels >= 0
    _, place, size = np.unique(labels[known], return_inverse=True, return_counts=True)
    rank = np.empty(len(size), np.int64)
    rank[np.argsort(-size, kind="stable")] = np.arange(len(size))
    values = np.full(len(labels), -1)
    values[known] = rank[place]
    return values, [f"cluster {i + 1}" for i in range(len(size))]


def _colour(name: str, values: NDArray[Any], words: list[str]) -> dict[str, Any]:
    return {"name": name, "values": _packed(values, "<i4"), "words": words}


def _names(run: StoredRun, arrays: Arrays) -> list[str]:
    """What the points' files are called, as far as the run's manifests say it."""
    names = np.full(len(arrays["index"]), "", object)
    of_test = (run.directory / "eval_manifest.parquet").is_file()
    for part, file in (
        (0, "manifest.parquet"),
        (1, "eval_manifest.parquet" if of_test else "manifest.parquet"),
    ):
        which = np.flatnonzero(arrays["split"] == part)
        if len(which):
            names[which] = _listed(run.directory / file, arrays["index"][which])
    return [str(name) for name in names]


def _listed(path: Path, index: NDArray[Any]) -> list[str]:
    try:
        rows = pq.read_table(path, columns=["path", "row"]).take(pa.array(index.astype(np.int64))).to_pylist()
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return [""] * len(index)
    return [_short(str(row["path"] or ""), row["row"]) for row in rows]


def _short(path: str, row: Any) -> str:
    if isinstance(row, int) and row >= 0:
        return f"row {row}"
    return path if len(path) <= NAME else f"…{path[1 - NAME :]}"


# -------------------------------------------------------------------- copies and outliers


def copies(of: RunMap) -> str:
    """Pairs of images that nearly are one, the most alike first."""
    pairs, cosines = of.arrays.get("pairs"), of.arrays.get("pair_cosines")
    if pairs is None or cosines is None or of.tiles is None:
        return ""
    if cosines.shape != pairs.shape[:1] or cosines.dtype.kind != "f":
        return ""
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not _within(pairs, of):
        return ""
    cells = "".join(
        f'<figure class="pair">{"".join(page.image(of.tiles[i], of.names[i]) for i in pair)}'
        f"<figcaption>{cosine:.3f}</figcaption></figure>"
        for pair, cosine in zip(pairs.tolist(), cosines.tolist(), strict=True)
    )
    return f'<div class="card gallery">{cells}</div>'


def copies_note(of: RunMap) -> str:
    if not {"copies", "threshold"} <= of.arrays.keys():
        return ""
    count, among = int(of.arrays["copies"]), len(of.arrays["points"])
    return (
        f"{count:,} of the map's {among:,} images have nearly the embedding of another (cosine of whitened embeddings"
        f" of {float(of.arrays['threshold']):g} or more); these pairs are the most alike, and show whether the images"
        " are the same too. raysurl duplicates looks at all images."
    )


def outliers(of: RunMap) -> str:
    """The images that lie farthest out."""
    far = of.arrays.get("outliers")
    if far is None or of.tiles is None or far.ndim != 1 or not _within(far, of):
        return ""
    cells = "".join(
        f"<figure>{page.image(of.tiles[i], of.names[i])}<figcaption>{escape(of.labelled(i))}</figcaption></figure>"
        for i in far.tolist()
    )
    return f'<div class="card gallery">{cells}</div>'


def _within(rows: NDArray[Any], of: RunMap) -> bool:
    """Whether these are numbers of points, and there are any."""
    whole = rows.dtype.kind in "iu" and rows.size > 0
    return bool(whole and rows.min() >= 0 and rows.max() < len(of.arrays["points"]))


def _tiles(run: StoredRun, arrays: Arrays) -> NDArray[np.uint8] | None:
    """(N, side, side, 3) thumbnails."""
    side, count = int(arrays.get("side", 0)), len(arrays.get("points", ()))
    try:
        with Image.open(run.directory / "samples" / SHEET) as picture:
            if side < 1 or picture.width * picture.height > MOST_PIXELS:
                return None
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError):
        return None
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    if rows * columns < count:
        return None
    whole = pixels[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    return whole.transpose(0, 2, 1, 3, 4).reshape(rows * columns, side, side, 3)[:count]
