"""Crops, resizing and blur: the operations that move or mix pixels.

Letters: n samples, H, W source pixels, S pixels of the view. Planes are (3, n, S, S) float in [0, 1], channel
first, so that each channel of a batch is one contiguous block of memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raysurl.views.draws import Draws
from raysurl.views.policies import Policy

Ints = NDArray[np.int64]
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # of the kernels, in pixels of the smaller grid
TAIL = 4.0  # standard deviations: what a blur leaves out beyond is below 0.02 of a grey level


@dataclass(frozen=True)
class Boxes:
    """What is sampled of each source image, (n,) each: a region, the size to which it is resized, and where
    the S×S view is cut out of that."""

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    out_height: Ints
    out_width: Ints
    cut_top: Ints
    cut_left: Ints

    def __getitem__(self, rows: slice) -> Boxes:
        return Boxes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def crop_boxes(policy: Policy, draws: Draws, heights: Ints, widths: Ints, size: int) -> Boxes:
    """Resolve draws against the images' heights and widths (n,), in pixels."""
    if policy.crop is None:
        return _centre_boxes(heights, widths, size, policy.margin)
    top, left, height, width = _random_boxes(policy, draws, heights, widths)
    whole, zero = np.full_like(top, size), np.zeros_like(top)
    return Boxes(top, left, height, width, whole, whole, zero, zero)


def _random_boxes(policy: Policy, draws: Draws, heights: Ints, widths: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """torchvision's RandomResizedCrop.get_params for n images at once: the first of ten attempts that fits,
    else the largest centred box of an allowed ratio."""
    assert policy.crop is not None
    uniform, place = draws.crop.numpy().astype(np.float64), draws.place.numpy().astype(np.float64)
    log_low, log_high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    area = (heights * widths)[:, None] * (
        policy.crop[0] + (policy.crop[1] - policy.crop[0]) * uniform[..., 0]
    )
    ratio = np.exp(log_low + (log_high - log_low) * uniform[..., 1])
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width > 0) & (width <= widths[:, None]) & (height > 0) & (height <= heights[:, None])
    first, row = fits.argmax(1), np.arange(len(heights))
    found = fits[row, first]

    source = widths / heights
    narrow, wide = source < policy.ratio[0], source > policy.ratio[1]
    fallback_height = np.where(narrow, np.rint(widths / policy.ratio[0]), heights).astype(np.int64)
    fallback_width = np.where(wide, np.rint(heights * policy.ratio[1]), widths).astype(np.int64)
    height = np.where(found, height[row, first], fallback_height)
    width = np.where(found, width[row, first], fallback_width)
    free_height, free_width = heights - height, widths - width
    top = np.where(found, (place[:, 0] * (free_height + 1)).astype(np.int64), free_height // 2)
    left = np.where(found, (place[:, 1] * (free_width + 1)).astype(np.int64), free_width // 2)
    return top, left, height, width


def _centre_boxes(heights: Ints, widths: Ints, size: int, margin: float) -> Boxes:
    """torchvision's Resize(margin × size) of the shorter side, then CenterCrop(size)."""
    short, target = np.minimum(heights, widths), round(margin * size)
    out_height, out_width = target * heights // short, target * widths // short
    cut_top = np.rint((out_height - size) / 2).astype(np.int64)
    cut_left = np.rint((out_width - size) / 2).astype(np.int64)
    zero = np.zeros_like(heights)
    return Boxes(zero, zero, heights, widths, out_height, out_width, cut_top, cut_left)


# ------------------------------------------------------------------- resizing


def resize_each(images: Sequence[Tensor], boxes: Boxes, size: int, interpolation: str) -> Tensor:
    """Crop and resize images (3, h, w) uint8 of any sizes, one by one on the CPU -> (n, 3, S, S) uint8."""
    out = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    columns = [getattr(boxes, field.name).tolist() for field in fields(boxes)]
    for i, (top, left, height, width, out_height, out_width, cut_top, cut_left) in enumerate(
        zip(*columns, strict=True)
    ):
        region = images[i][:, top : top + height, left : left + width]
        if (height, width) != (out_height, out_width):
            region = F.interpolate(
                region[None], size=(out_height, out_width), mode=interpolation, antialias=True
            )[0]
        out[i] = region[:, cut_top : cut_top + size, cut_left : cut_left + size]
    return out


def resize_together(
    images: Tensor, boxes: Tensor, flip: Tensor, size: int, interpolation: str, taps: int
) -> Tensor:
    """Crop, resize and flip images (n, 3, H, W) uint8 in a few calls for all of them. Returns planes.

    `boxes` (8, n) float holds the fields of Boxes on the images' device, `flip` (n,) bool. An output row is a
    weighted sum of at most `taps` (see `row_taps`) source rows, and then of each row a small matrix product
    makes the output columns.
    """
    n, channels, source_height, source_width = images.shape
    top, left, height, width, out_height, out_width, cut_top, cut_left = boxes
    view = torch.arange(size, device=images.device) + 0.5
    mirrored = torch.where(flip[:, None], size - view, view)

    centre, stretch = _centres(top, height, out_height, cut_top[:, None] + view)
    first = (centre - stretch * SUPPORT[interpolation] + 0.5).floor_()
    row = first[..., None] + torch.arange(taps, device=images.device)
    weight = _weights(row + 0.5, centre, stretch, top, height, interpolation)
    image = source_height * torch.arange(n * channels, device=images.device).view(n, channels, 1, 1)
    row = row.clamp_(0, source_height - 1).long()[:, None] + image
    wide = F.embedding_bag(
        row.view(-1, taps),
        images.to(torch.float32, memory_format=torch.contiguous_format).view(-1, source_width),
        per_sample_weights=weight[:, None].expand(row.shape).reshape(-1, taps),
        mode="sum",
    ).view(n, channels, size, source_width)

    centre, stretch = _centres(left, width, out_width, cut_left[:, None] + mirrored)
    pixel = torch.arange(source_width, device=images.device) + 0.5
    columns = _weights(pixel.expand(n, 1, -1), centre, stretch, left, width, interpolation)
    columns = columns.mul_(1 / 255).transpose(1, 2)
    planes = wide.new_empty(channels, n, size, size)
    for channel in range(channels):
        torch.bmm(wide[:, channel], columns, out=planes[channel])
    return planes.clamp_(0, 1) if interpolation == "bicubic" else planes  # cubic weights overshoot


def row_taps(boxes: Boxes, interpolation: str) -> int:
    """How many source rows an output row may be made of: the integers in an open interval of 2·support."""
    stretch = np.maximum(boxes.height / boxes.out_height, 1).max(initial=1)
    return math.ceil(2 * SUPPORT[interpolation] * stretch)


def _centres(start: Tensor, length: Tensor, out_length: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """Where the output pixels with centres at `view` (n, S) lie in the source, whose pixels start …
    start+length−1 are resized to out_length, (n,) each; and the stretch (n, 1) of the kernel where they are many."""
    scale = (length / out_length)[:, None]
    return torch.addcmul(start[:, None], view, scale), scale.clamp(min=1)


def _weights(
    pixel: Tensor, centre: Tensor, stretch: Tensor, start: Tensor, length: Tensor, interpolation: str
) -> Tensor:
    """Weights of source pixels (n, S or 1, P) in output pixels with centres (n, S) -> (n, S, P), of sum 1 over P.

    The same as in torch's interpolate(antialias=True): pixels outside start … start+length−1 have none.
    """
    distance = (pixel - centre[..., None]).abs_().div_(stretch[..., None])
    weight = _cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp_(min=0)
    start, length = start[:, None, None], length[:, None, None]
    weight.mul_(((pixel > start) & (pixel < start + length)).to(weight.dtype))
    return weight.div_(weight.sum(2, keepdim=True))


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic kernel of distances x ≥ 0; a = −0.5 is what antialiased bicubic uses."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


# ----------------------------------------------------------------------- blur


def blur_weights(sigma: Tensor, kernel: int) -> Tensor:
    """One side of torchvision's Gaussian kernels: sigma (n,) -> (n, radius+1), centre first; cut at TAIL."""
    offset = torch.arange(kernel // 2 + 1, dtype=sigma.dtype, device=sigma.device)
    weight = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    weight = weight * (offset <= (TAIL * sigma[:, None]).ceil())
    return weight / (2 * weight.sum(1, keepdim=True) - weight[:, :1])


def blur(planes: Tensor, weights: Tensor, radius: int) -> Tensor:
    """Separable Gaussian blur with reflected borders: planes (3, n, S, S), weights (n, >radius).

    The padded images are kept flat, so that a tap of either direction is one pass over contiguous memory; the
    few values that wrap around the end of a row are never read. Returns new planes.
    """
    channels, n, height, width = planes.shape
    padded = F.pad(planes, (radius,) * 4, mode="reflect")
    stride = width + 2 * radius
    flat = padded.view(channels, n, -1)
    length = (height + 2 * radius) * stride - 2 * radius
    flat = _taps(flat, weights, radius, 1, length, length)
    flat = _taps(flat, weights, radius, stride, (height - 1) * stride + width, height * stride)
    return flat.view(channels, n, height, stride)[..., :width]


def _taps(flat: Tensor, weights: Tensor, radius: int, stride: int, length: int, room: int) -> Tensor:
    """Weighted sum of 2·radius+1 shifted copies of flat (3, n, L) -> (3, n, room), `length` of it set."""
    buffer = flat.new_empty(*flat.shape[:2], room)
    out = buffer[..., :length]
    torch.mul(flat[..., radius * stride :][..., :length], weights[:, :1], out=out)
    for offset in range(1, radius + 1):
        weight = weights[:, offset : offset + 1]
        for shift in (radius - offset, radius + offset):
            out.addcmul_(flat[..., shift * stride :][..., :length], weight)
    return buffer
