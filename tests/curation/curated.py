"""Slow references, a small folder of images with planted copies, and one run that embeds it."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from places import made_once
from small_run import finished_run

from raysurl.curation import Embeddings
from raysurl.curation.embedding import write_embeddings

IMAGES = 24


def of_rows(
    rows: np.ndarray, pixels: list[bytes] | None = None, areas: list[int] | None = None
) -> Embeddings:
    """Embeddings with what is known of their images."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    numbers = np.arange(len(rows))
    table = pa.table(
        {"name": [f"i{n}" for n in numbers], "path": ["a"] * len(rows), "row": numbers, "label": numbers}
    )
    if pixels is not None:
        table = table.append_column("pixels", pa.array(pixels, pa.binary()))
    if areas is not None:
        table = table.append_column("height", pa.array(areas)).append_column(
            "width", pa.array([1] * len(rows))
        )
    return Embeddings(rows.astype(np.float32), table)


def groups_by_loops(rows: np.ndarray, pixels: list[bytes] | None, threshold: float) -> list[set[int]]:
    """What is connected by equal pixels or by a cosine of the threshold, found by walking."""
    rows = rows.astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    linked = rows @ rows.T >= threshold
    if pixels is not None:
        linked |= np.array([[a == b for b in pixels] for a in pixels])
    left, found = set(range(len(rows))), []
    while left:
        group, walk = set(), [left.pop()]
        while walk:
            row = walk.pop()
            group.add(row)
            walk += [other for other in sorted(left) if linked[row, other]]
            left -= set(walk)
        if len(group) > 1:
            found.append(group)
    return sorted(found, key=min)


@cache
def photos() -> Path:
    """A folder of images of which 00.png is there again: larger, as another kind of file, in another folder."""
    root = made_once("curation") / "photos"
    (root / "é b").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        pixels = random.integers(0, 256, (8 + i % 3, 8, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{i:02}.png")
    first = Image.open(root / "00.png")
    first.save(root / "00 copy.bmp")
    first.save(root / "é b" / "00 copy.png", compress_level=0)
    first.resize((16, 16), Image.Resampling.NEAREST).save(root / "00 large.png")
    return root


@cache
def embedded() -> Path:
    """The embeddings file of `photos`."""
    target = photos().parent / "photos.parquet"
    with contextlib.redirect_stdout(io.StringIO()):
        write_embeddings(given(), target)
    return target


def given(**more: str) -> dict[str, str]:
    data = {"data.name": "folder", "data.path": str(photos()), "data.limit": "", "data.labels": "none"}
    return {"run": str(finished_run()), **data, **more}
