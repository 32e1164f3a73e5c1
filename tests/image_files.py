"""Small image files of every awkward kind, and how they should look when read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from places import SHARED

needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the shared data are not here")

RED, BLUE = (200, 30, 40), (20, 40, 210)


def two_colours(width: int = 12, height: int = 8) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def encoded(image: Image.Image, form: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **settings)
    return buffer.getvalue()


def random_png(seed: int, width: int = 10, height: int = 10) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def image_folder(
    root: Path, count: int = 40, *, classes: int = 0, ragged: bool = False, bad: int = 0
) -> Path:
    """PNG files 000.png …, in class folders where asked; the first `bad` of them are not images."""
    for i in range(count):
        folder = root / f"class{i % classes}" if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        size = (8 + i % 5, 8 + i % 3) if ragged else (10, 10)
        (folder / f"{i:03}.png").write_bytes(b"no image" if i < bad else random_png(i, *size))
    return root


def parquet_file(
    path: Path, count: int = 40, *, struct: bool = False, row_group_size: int = 7, first: int = 0
) -> Path:
    """Column `image` (bytes, or the struct that Hugging Face writes) and column `label`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [random_png(first + i) for i in range(count)]
    column = [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(images)] if struct else images
    table = pa.table({"image": column, "label": np.arange(first, first + count) % 3})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def pixels_of(data: bytes) -> np.ndarray:
    """(3, h, w) by the plainest route."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
