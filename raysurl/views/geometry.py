"""Where a view is cut out of an image, and how widely it is blurred.

Letters: n samples, H, W source pixels, S pixels of the view.
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
Reals = NDArray[np.float32]
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
    """Crop and resize images (1 | 3, h, w) uint8 of any sizes, one by one on the CPU -> (n, 3, S, S) uint8.

    They lie pixel by pixel in memory, as torch resizes them fastest.
    """
    out = torch.empty(len(images), size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    columns = [getattr(boxes, field.name).tolist() for field in fields(boxes)]
    for i, (top, left, height, width, out_height, out_width, cut_top, cut_left) in enumerate(
        zip(*columns, strict=True)
    ):
        region = images[i][None, :, top : top + height, left : left + width].expand(-1, 3, -1, -1)
        if (height, width) != (out_height, out_width):
            region = F.interpolate(
                region.contiguous(memory_format=torch.channels_last),
                size=(out_height, out_width), mode=interpolation, antialias=True,
            )  # fmt: skip
        out[i] = region[0, :, cut_top : cut_top + size, cut_left : cut_left + size]
    return out


# ----------------------------------------------------------------------- blur


def blur_radius(sigma: Reals, kernel: int) -> Ints:
    """Pixels (n,) to either side beyond which nothing is left of the blur; sigma (n,)."""
    return np.minimum(np.ceil(TAIL * sigma), kernel // 2).astype(np.int64)


def blur_weights(sigma: Reals, kernel: int) -> Reals:
    """One side of torchvision's Gaussian kernels: sigma (n,) -> (n, radius+1), centre first; cut at TAIL.

    Not in torch, which for so few numbers would wake all its threads, and they wait busily for the next.
    """
    offset = np.arange(kernel // 2 + 1, dtype=np.float32)
    weight = np.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    weight *= offset <= blur_radius(sigma, kernel)[:, None]
    return weight / (2 * weight.sum(1, keepdims=True) - weight[:, :1])
