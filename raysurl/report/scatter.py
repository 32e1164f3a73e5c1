"""Points of the plane as a picture: one colour per class, or a scale of colours for numbers. Needs Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raysurl import streams
from raysurl.errors import InputError

SIDE, MARGIN, OVERSAMPLED = 720, 24, 2  # pixels of the square, its margin; drawn larger, then reduced
LEGEND = 150
CLASSES = 24  # more distinct whole numbers than these are shown as a scale
# Twelve colours far from each other, then the same ones darker.
WHEEL = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#e08214", "#1b9e77"),
    *("#7570b3", "#a6761d", "#666666", "#e7298a"),
)
SCALE = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")  # dark to light
UNKNOWN = (190, 190, 190)

Pixels = NDArray[np.uint8]


def draw(
    points: NDArray[Any], colour: NDArray[Any] | None = None, names: Sequence[str] | None = None
) -> Pixels:
    """Picture (H, W, 3) of points (N, 2); `colour` (N,) classes (−1 = unknown) or numbers, `names` of the classes.

    Raises InputError for points that are not of the plane or not finite, and for a colour of another length.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise InputError(f"a plot needs finite points (N, 2), not {points.shape}")
    values = np.full(len(points), -1) if colour is None else np.asarray(colour)
    if values.shape != (len(points),):
        raise InputError(f"a plot of {len(points)} points needs as many colours, not {values.shape}")
    if values.dtype.kind not in "biuf":
        found, values = np.unique(values.astype(str), return_inverse=True)
        names = found.tolist()
    rgb, legend = _colours(values, names)
    side, margin = SIDE * OVERSAMPLED, MARGIN * OVERSAMPLED
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (side - 2 * margin) / max(float((high - low).max()), 1e-12)
    at = ((points - (low + high) / 2) * scale * (1, -1) + side / 2).round().astype(int)
    image = Image.new("RGB", (side + LEGEND * OVERSAMPLED, side), "white")
    canvas = np.asarray(image).copy()
    radius = 1 if len(points) > 20_000 else 2 if len(points) > 4_000 else 4 if len(points) > 500 else 6
    order = streams.numpy_stream(0, "scatter").permutation(
        len(points)
    )  # no class hides another by its number
    offsets = [(x, y) for x in range(-radius, radius + 1) for y in range(-radius, radius + 1)]
    for x, y in (o for o in offsets if o[0] ** 2 + o[1] ** 2 <= radius**2 + 1):
        canvas[at[order, 1] + y, at[order, 0] + x] = rgb[order]
    image = Image.fromarray(canvas).resize((SIDE + LEGEND, SIDE), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    for row, (text, fill) in enumerate(legend):
        y = MARGIN + 20 * row
        pen.rectangle((SIDE, y, SIDE + 12, y + 12), fill=fill)
        pen.text((SIDE + 20, y), text, fill="black")
    return np.asarray(image)


def save(
    path: Path | str,
    points: NDArray[Any],
    colour: NDArray[Any] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """`draw` into a PNG file."""
    Image.fromarray(draw(points, colour, names)).save(Path(path), format="PNG")


def _colours(
    values: NDArray[Any], names: Sequence[str] | None
) -> tuple[Pixels, list[tuple[str, tuple[int, ...]]]]:
    """Colour (N, 3) of each value, and the rows of the legend."""
    if values.dtype.kind in "biu":
        classes = np.unique(values[values >= 0]) if values.dtype.kind != "b" else np.unique(values)
        if len(classes) <= CLASSES:
            rgb = np.empty((len(values), 3), np.uint8)
            rgb[:] = UNKNOWN
            legend = []
            for place, label in enumerate(classes):
                fill = _rgb(WHEEL[place % len(WHEEL)], 1.0 if place < len(WHEEL) else 0.6)
                rgb[values == label] = fill
                known = names is not None and int(label) < len(names)
                legend.append((names[int(label)] if known and names else str(label), fill))
            return rgb, legend
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.full((len(values), 3), UNKNOWN[0], np.uint8), []
    low, high = float(numbers[finite].min()), float(numbers[finite].max())
    share = np.where(finite, (numbers - low) / ((high - low) or 1.0), 0.0)
    stops = np.array([_rgb(code) for code in SCALE], float)
    along = np.linspace(0, 1, len(SCALE))
    rgb = np.stack([np.interp(share, along, stops[:, c]) for c in range(3)], axis=1).round().astype(np.uint8)
    rgb[~finite] = UNKNOWN
    return rgb, [(f"{low + (high - low) * a:.4g}", _rgb(code)) for a, code in zip(along, SCALE, strict=True)]


def _rgb(code: str, light: float = 1.0) -> tuple[int, ...]:
    return tuple(round(int(code[i : i + 2], 16) * light) for i in (1, 3, 5))
