"""The colour operations of `FixedView` on an NVIDIA GPU, in two kernels of Triton instead of some fifty of torch.

What `FixedView` does in a pass for each operation is bound by memory: at 224 pixels 120 planes are read or written for
each image. Contrast needs the mean grey of the whole image, at its place in the sample's own order; nothing else does.
So a first kernel follows each pixel up to there and sums its grey, and a second does all operations on a pixel that it
reads and writes once: 9 planes.

Letters: b images, S pixels of a side, P numbers in a row. Planes are (3, b, S, S).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from raysurl.views.colour import LUMA, TINY

BLOCK = 1024  # pixels of one program

RED, GREEN, BLUE = (tl.constexpr(weight) for weight in LUMA)
SMALLEST = tl.constexpr(TINY)


@triton.jit
def _turned(value, chroma, hue, centre):  # type: ignore[no-untyped-def]
    share = tl.abs(tl.abs(hue - centre) - 3) - 1
    return value - chroma * tl.minimum(tl.maximum(share, 0), 1)


@triton.jit
def _rotate(red, green, blue, row):  # type: ignore[no-untyped-def]
    """`colour.rotate_hue` with the centres at `row`."""
    lowest = tl.minimum(tl.minimum(red, green), blue)
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - lowest
    hue = (green + blue - red - lowest) / tl.maximum(chroma, SMALLEST) + 1
    hue = tl.where(green < blue, -hue, hue)
    red = _turned(value, chroma, hue, tl.load(row))
    green = _turned(value, chroma, hue, tl.load(row + 1))
    return red, green, _turned(value, chroma, hue, tl.load(row + 2))


@triton.jit
def _one(x, keep, offset):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(x * keep + offset, 0), 1)


@triton.jit  # type: ignore[untyped-decorator]
def _colours(  # type: ignore[no-untyped-def]
    planes, rows, sums, plane, pixels, width, tiles,
    blend: tl.constexpr, slots: tl.constexpr, hue: tl.constexpr, turn: tl.constexpr, gray: tl.constexpr,
    tiles2: tl.constexpr, block: tl.constexpr, last: tl.constexpr,
):  # fmt: skip
    """One tile of one image. `blend`, `hue`, `gray`: where these numbers begin in a row, −1 for none; the hue is turned
    before slot `turn`. With `last` the pixels are written; without, the grey that contrast takes the mean of is summed.
    """
    sample, tile = tl.program_id(0), tl.program_id(1)
    at = tile * block + tl.arange(0, block)
    within = at < pixels
    here = planes + sample.to(tl.int64) * pixels + at
    row = rows + sample * width
    red, green, blue = (
        tl.load(here, within, 0),
        tl.load(here + plane, within, 0),
        tl.load(here + 2 * plane, within, 0),
    )
    total, mean = 0.0, 0.0
    if last and slots > 0:
        parts = tl.arange(0, tiles2)
        mean = tl.sum(tl.load(sums + sample * tiles + parts, parts < tiles, 0)) / pixels
    for slot in tl.static_range(slots + 1):
        if hue >= 0 and slot == turn:
            red, green, blue = _rotate(red, green, blue, row + hue)
        if slot < slots:
            keep, of_grey, of_mean = (
                tl.load(row + blend + 3 * slot),
                tl.load(row + blend + 3 * slot + 1),
                tl.load(row + blend + 3 * slot + 2),
            )
            grey = red * RED + green * GREEN + blue * BLUE
            if not last:
                total += tl.where(of_mean != 0, tl.sum(tl.where(within, grey, 0)), 0.0)
            offset = grey * of_grey + mean * of_mean
            red, green, blue = _one(red, keep, offset), _one(green, keep, offset), _one(blue, keep, offset)
    if not last:
        tl.store(sums + sample * tiles + tile, total)
    else:
        if gray >= 0:
            much = tl.load(row + gray)
            grey = red * RED + green * GREEN + blue * BLUE
            red, green, blue = (
                red + much * (grey - red),
                green + much * (grey - green),
                blue + much * (grey - blue),
            )
        tl.store(here, red, within)
        tl.store(here + plane, green, within)
        tl.store(here + 2 * plane, blue, within)


def colours(planes: Tensor, rows: Tensor, starts: dict[str, int], slots: int, turn: int) -> Tensor:
    """Jitter and grey of contiguous planes, in place; `rows` (b, P) float32, a row contiguous.

    `starts`: where the numbers of `blend`, `hue` and `gray` begin in a row, for those that are there; `slots` blends,
    the hue turned before the one of number `turn`. The result is that of `FixedView`'s own operations to rounding.
    """
    _, count, height, width = planes.shape
    pixels, blend = height * width, starts.get("blend", -1)
    slots = slots if blend >= 0 else 0
    tiles = triton.cdiv(pixels, BLOCK)
    sums = torch.empty(count, tiles, dtype=torch.float32, device=planes.device)
    with torch.cuda.device_of(planes):  # where Triton starts kernels
        for last in (False, True) if slots else (True,):
            _colours[(count, tiles)](
                planes, rows, sums, planes.stride(0), pixels, rows.stride(0), tiles,
                blend, slots, starts.get("hue", -1), turn, starts.get("gray", -1),
                triton.next_power_of_2(tiles), BLOCK, last,
            )  # fmt: skip
    return planes
