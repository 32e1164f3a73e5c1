"""A view's pixels on a CPU: compiled code that makes one image after another, each of them in a core's cache.

Crop and resizing, flip, jitter, grey, blur, solarize and normalisation of an image are done before the next is begun,
with what that image has drawn and with nothing of the others. Formulas are torchvision's: antialiased resizing of
`interpolate`, and the colour operations of `raysurl.views.colour`. Nothing is rounded to bytes in between.

Letters: b samples, n images of one call, H, W source pixels, S pixels of the view, R the widest blur's radius.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysurl.compiled import compiled
from raysurl.views.colour import BRIGHTNESS, CONTRAST, HUE, LUMA, SATURATION, TINY
from raysurl.views.geometry import Ints, Reals

Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Number = Any  # a scalar of compiled code, which keeps it in 4 bytes or 8 as it is computed

BLOCK = 1024  # pixels that go through all operations of a sample together: 12 KiB
NONE = -1  # in `order`: no operation
# what compiled code is to compute in single precision it has to be given in it
ZERO, HALF, ONE, THREE = np.float32(0), np.float32(0.5), np.float32(1), np.float32(3)
RED, GREEN, BLUE = (np.float32(weight) for weight in LUMA)
SMALLEST = np.float32(TINY)
LEVEL = np.float32(1 / 255)


class Parameters(NamedTuple):
    """What b samples have drawn, a row of each."""

    boxes: Ints  # (b, 8) the fields of `geometry.Boxes`
    flip: Flags  # (b,)
    order: Ints  # (b, 4) jitter operations in their order, or NONE
    factors: Reals  # (b, 4) of brightness, contrast and saturation; the fourth is not used
    centres: Reals  # (b, 3) of `colour.hue_centres`
    gray: Flags  # (b,)
    radius: Ints  # (b,) of the blur; 0: none
    weights: Reals  # (b, R+1) of the blur, centre first
    solarize: Flags  # (b,)


@compiled
def make(
    images: Bytes,
    step: int,
    first: int,
    given: Parameters,
    cubic: bool,
    scale: Reals,
    offset: Reals,
    out: Reals,
) -> None:
    """Write samples first … first+n−1 of `given` into `out` (b, 3, S²), as scale·x + offset of x in [0, 1].

    `images` (n, C, H, W) channel by channel, `step` 1; or (n, 1, H, 3·W) pixel by pixel, `step` 3. One channel is grey.
    """
    for i in range(len(images)):
        at = first + i
        planes = out[at]
        _crop(images[i], step, given.boxes[at], given.flip[at], cubic, planes)
        _colours(planes, given.order[at], given.factors[at], given.centres[at], given.gray[at])
        if given.radius[at]:
            _blur(planes, given.weights[at], given.radius[at])
        _finish(planes, given.solarize[at], scale, offset)


# ------------------------------------------------------------------------ crop, resizing, flip


@compiled
def _crop(image: Bytes, step: int, box: Ints, flip: bool, cubic: bool, planes: Reals) -> None:
    """Of each output row the weighted sum of source rows, of which each output pixel takes neighbours."""
    size = round(math.sqrt(planes.shape[1]))
    row, row_weights = _neighbours(box[0], box[2], box[4], box[6], size, cubic)
    column, column_weights = _neighbours(box[1], box[3], box[5], box[7], size, cubic)
    left, length = box[1] * step, box[3] * step
    line = np.empty(len(image) * length, np.float32)
    apart = 1 if step == 3 else (length if len(image) == 3 else 0)  # a pixel's channels in the line
    for y in range(size):
        for part in range(len(image)):
            _line(image[part], row[y], row_weights[y], left, line[part * length : (part + 1) * length])
        for x in range(size):
            at = np.uintp(column[x] * step - left)
            red = green = blue = ZERO
            for t in range(column_weights.shape[1]):
                weight = column_weights[x, t]
                red += weight * line[at]
                green += weight * line[at + np.uintp(apart)]
                blue += weight * line[at + np.uintp(2 * apart)]
                at += np.uintp(step)
            to = y * size + (size - 1 - x if flip else x)
            # cubic weights overshoot
            planes[0, to] = _clamp(red * LEVEL)
            planes[1, to] = _clamp(green * LEVEL)
            planes[2, to] = _clamp(blue * LEVEL)


@compiled
def _line(rows: Bytes, row: int, weights: Reals, left: int, line: Reals) -> None:
    """The weighted sum of source rows from `row` on, from value `left` on."""
    for t in range(len(weights)):
        weight, source = weights[t], rows[row + t, left : left + len(line)]
        if t == 0:
            for x in range(len(line)):
                line[x] = weight * np.float32(source[x])
        elif weight != 0:
            for x in range(len(line)):
                line[x] += weight * np.float32(source[x])


@compiled
def _neighbours(
    start: int, length: int, out_length: int, cut: int, size: int, cubic: bool
) -> tuple[Ints, Reals]:
    """Of each output pixel the first source pixel (S,) that it takes and the weights (S, T) from there on, of sum 1.

    Source pixels start … start+length−1 are resized to out_length, of which `size` are cut out: those of
    torch's interpolate(antialias=True), to which pixels outside do not exist.
    """
    scale = length / out_length
    stretch = max(scale, 1.0)
    reach = stretch * (2.0 if cubic else 1.0)
    taps = min(length, math.ceil(2 * reach))
    first, weights = np.empty(size, np.int64), np.zeros((size, taps), np.float32)
    for k in range(size):
        centre = start + (cut + k + 0.5) * scale
        # no further than that `taps` pixels from there on exist; those before the kernel weigh nothing
        low = min(max(math.floor(centre - reach + 0.5), start), start + length - taps)
        high = min(math.floor(centre + reach + 0.5), start + length, low + taps)
        total = 0.0
        for t in range(high - low):
            distance = abs(low + t + 0.5 - centre) / stretch
            weight = _cubic(distance) if cubic else max(0.0, 1 - distance)
            weights[k, t] = weight
            total += weight
        for t in range(high - low):
            weights[k, t] /= total
        first[k] = low
    return first, weights


@compiled
def _cubic(x: float) -> float:
    """Keys' kernel with a = −0.5, as `fixed._cubic`."""
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


# ------------------------------------------------------------------------------------- colours


@compiled
def _colours(planes: Reals, order: Ints, factors: Reals, centres: Reals, gray: bool) -> None:
    """Jitter and grey. Contrast needs the mean grey of the image as it is then: what comes before it is done first."""
    begun: Number = np.int64(0)  # for the literal 0 all of this would be compiled once more
    mean = ZERO
    for turn in range(len(order)):
        if order[turn] == CONTRAST:
            _jitter(planes, order, begun, turn, factors, centres, mean)
            begun, mean = turn, _mean_grey(planes[0], planes[1], planes[2])
    _jitter(planes, order, begun, len(order), factors, centres, mean)
    if gray:
        _to_gray(planes[0], planes[1], planes[2])


@compiled
def _jitter(
    planes: Reals, order: Ints, begin: Number, end: Number, factors: Reals, centres: Reals, mean: Number
) -> None:
    """The operations of turns begin … end−1, all of them to a block before the next."""
    for start in range(0, planes.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        red, green, blue = planes[0][block], planes[1][block], planes[2][block]
        for turn in range(begin, end):
            kind = order[turn]
            if kind == BRIGHTNESS:
                _toward(red, green, blue, factors[BRIGHTNESS], ZERO)
            elif kind == CONTRAST:
                _toward(red, green, blue, factors[CONTRAST], (ONE - factors[CONTRAST]) * mean)
            elif kind == SATURATION:
                _saturate(red, green, blue, factors[SATURATION])
            elif kind == HUE:
                _rotate_hue(red, green, blue, centres[0], centres[1], centres[2])


@compiled
def _clamp(x: Number) -> Number:
    return min(max(x, ZERO), ONE)


@compiled
def _grey(red: Number, green: Number, blue: Number) -> Number:
    return red * RED + green * GREEN + blue * BLUE


@compiled
def _mean_grey(red: Reals, green: Reals, blue: Reals) -> Number:
    total = ZERO
    for x in range(len(red)):
        total += _grey(red[x], green[x], blue[x])
    return total / np.float32(len(red))


@compiled
def _to_gray(red: Reals, green: Reals, blue: Reals) -> None:
    for x in range(len(red)):
        grey = _grey(red[x], green[x], blue[x])
        red[x], green[x], blue[x] = grey, grey, grey


@compiled
def _toward(red: Reals, green: Reals, blue: Reals, keep: Number, offset: Number) -> None:
    """Brightness (toward black) and contrast (toward the mean grey)."""
    for x in range(len(red)):
        red[x] = _clamp(red[x] * keep + offset)
        green[x] = _clamp(green[x] * keep + offset)
        blue[x] = _clamp(blue[x] * keep + offset)


@compiled
def _saturate(red: Reals, green: Reals, blue: Reals, keep: Number) -> None:
    for x in range(len(red)):
        offset = (ONE - keep) * _grey(red[x], green[x], blue[x])
        red[x] = _clamp(red[x] * keep + offset)
        green[x] = _clamp(green[x] * keep + offset)
        blue[x] = _clamp(blue[x] * keep + offset)


@compiled
def _rotate_hue(
    red: Reals, green: Reals, blue: Reals, of_red: Number, of_green: Number, of_blue: Number
) -> None:
    """`colour.rotate_hue`, a pixel at a time."""
    for x in range(len(red)):
        r, g, b = red[x], green[x], blue[x]
        lowest, value = min(min(r, g), b), max(max(r, g), b)
        chroma = value - lowest
        hue = (g + b - r - lowest) / max(chroma, SMALLEST) + ONE
        hue = -hue if g < b else hue
        red[x] = value - chroma * _share(hue, of_red)
        green[x] = value - chroma * _share(hue, of_green)
        blue[x] = value - chroma * _share(hue, of_blue)


@compiled
def _share(hue: Number, centre: Number) -> Number:
    return _clamp(abs(abs(hue - centre) - THREE) - ONE)


# ------------------------------------------------------------------------------ blur and the end


@compiled
def _blur(planes: Reals, weights: Reals, radius: Number) -> None:
    """Separable Gaussian blur with reflected borders. A padded plane is kept flat, so that a tap of either direction is
    a pass over contiguous memory; what wraps around the end of a row is never read.
    """
    size = round(math.sqrt(planes.shape[1]))
    stride = size + 2 * radius
    top, bottom = radius * stride, (radius + size) * stride
    padded, across = np.zeros(stride * stride, np.float32), np.zeros(stride * stride, np.float32)
    for channel in range(3):
        plane = planes[channel]
        for y in range(size):
            begin = top + y * stride
            _reflect(plane[y * size : (y + 1) * size], radius, padded[begin : begin + stride])
        for begin in range(top + radius, bottom - radius, BLOCK):
            end = min(begin + BLOCK, bottom - radius)
            _smooth(padded, begin, np.int64(1), weights, radius, across[begin:end])
        for k in range(1, radius + 1):
            for x in range(stride):
                across[top - k * stride + x] = across[top + k * stride + x]
                across[bottom + (k - 1) * stride + x] = across[bottom - (k + 1) * stride + x]
        for y in range(size):
            begin = top + y * stride + radius
            _smooth(across, begin, stride, weights, radius, plane[y * size : (y + 1) * size])


@compiled
def _reflect(line: Reals, radius: Number, padded: Reals) -> None:
    middle, last = padded[radius : radius + len(line)], len(line) - 1
    for x in range(len(line)):
        middle[x] = line[x]
    for k in range(1, radius + 1):
        padded[radius - k], padded[radius + last + k] = line[k], line[last - k]


@compiled
def _smooth(source: Reals, begin: Number, stride: Number, weights: Reals, radius: Number, out: Reals) -> None:
    """Weighted sum of 2·radius+1 shifted copies of `source`, from `begin` on."""
    length, middle, weight = len(out), source[begin : begin + len(out)], weights[0]
    for x in range(length):
        out[x] = weight * middle[x]
    for k in range(1, radius + 1):
        before, after = begin - k * stride, begin + k * stride
        low, high, weight = source[before : before + length], source[after : after + length], weights[k]
        for x in range(length):
            out[x] += weight * (low[x] + high[x])


@compiled
def _finish(planes: Reals, solarize: bool, scale: Reals, offset: Reals) -> None:
    """Solarize (invert what is at or above one half) and normalise."""
    for channel in range(3):
        plane, factor, shift = planes[channel], scale[channel], offset[channel]
        if solarize:
            for x in range(len(plane)):
                plane[x] = HALF - abs(plane[x] - HALF)
        for x in range(len(plane)):
            plane[x] = plane[x] * factor + shift
