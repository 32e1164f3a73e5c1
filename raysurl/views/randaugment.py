"""RandAugment as in CLSA: a few operations of FixMatch's pool of fourteen, each with a random strength.

Source: the code of "Contrastive Learning with Stronger Augmentations" (Wang & Qi, 2021), whose pool, ranges
and rounding to integers are kept: strength v = level / 10; brightness, contrast, colour and sharpness are
0.05 + 0.9 v; posterize to 4 + int(4 v) bits, rotate by int(30 v)°, shear by 0.3 v, translate by
int(0.3 v · side) pixels, solarize from 256 − int(256 v). New pixels are black and nothing is interpolated, as there.
Planes are (3, n, H, W) float in [0, 1].
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl.views.colour import luma, to_device
from raysurl.views.draws import Draws

POOL = (
    "autocontrast", "brightness", "color", "contrast", "equalize", "identity", "posterize", "rotate",
    "sharpness", "shear_x", "shear_y", "solarize", "translate_x", "translate_y",
)  # fmt: skip
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def randaugment(planes: Tensor, draws: Draws) -> None:
    """Apply each sample's operations, round by round, in place."""
    for turn in range(draws.operation.shape[1]):
        operation = draws.operation[:, turn].numpy()
        for number in np.unique(operation[operation >= 0]):
            rows = np.flatnonzero(operation == number)
            level = draws.level[:, turn].numpy()[rows]
            negative = draws.negative[:, turn].numpy()[rows]
            index = to_device(rows, planes.device)
            part = planes.index_select(1, index)
            planes.index_copy_(1, index, operate(POOL[number], part, level, negative))


def operate(name: str, planes: Tensor, level: np.ndarray, negative: np.ndarray) -> Tensor:
    """One operation of the pool on n samples; level (n,) 1 … 9, negative (n,) bool. May change `planes`."""
    strength = level / 10
    if name == "identity":
        return planes
    if name == "autocontrast":
        return autocontrast(planes)
    if name == "equalize":
        return equalize(planes)
    if name in GEOMETRIC:
        return warp(planes, affine(name, strength * np.where(negative, -1, 1), planes.shape[2]))
    if name == "posterize":
        return posterize(planes, _column(2.0 ** (4 - (4 * strength).astype(int)), planes))
    if name == "solarize":
        threshold = _column((256 - (256 * strength).astype(int)) / 255, planes)
        return torch.where(planes >= threshold, 1 - planes, planes)
    factor = _column(0.05 + 0.9 * strength, planes)
    if name == "sharpness":
        return sharpen(planes, factor)
    if name == "brightness":
        return planes.mul_(factor).clamp_(0, 1)
    grey = luma(planes)  # what color blends with; contrast with its mean
    grey = grey.mean((1, 2), keepdim=True) if name == "contrast" else grey
    return planes.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 1)


def autocontrast(planes: Tensor) -> Tensor:
    """Stretch each channel of each sample to [0, 1]; a constant channel stays."""
    low, high = planes.amin((2, 3), keepdim=True), planes.amax((2, 3), keepdim=True)
    flat = high == low
    return planes.sub(low.where(~flat, 0.0)).div_((high - low).where(~flat, 1.0)).clamp_(0, 1)


def equalize(planes: Tensor) -> Tensor:
    """Histogram equalisation per channel and sample with Pillow's integer rule, on 256 levels."""
    levels = planes.mul(255).round_().long().flatten(2)
    histogram = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=planes.device)
    histogram.scatter_add_(2, levels, torch.ones_like(levels))
    last = histogram.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - last) // 255
    before = histogram.cumsum(2) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp(0, 255)
    table = table.where(step > 0, torch.arange(256, device=planes.device))
    return table.gather(2, levels).view(planes.shape).to(planes.dtype).div_(255)


def posterize(planes: Tensor, step: Tensor) -> Tensor:
    """Keep the highest bits of 8: levels become multiples of `step` (n, 1, 1)."""
    return planes.mul(255).round_().div_(step).floor_().mul_(step).div_(255)


def sharpen(planes: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed copy, factor (n, 1, 1) on the image itself; the outermost pixels stay."""
    if min(planes.shape[2:]) <= 2:
        return planes
    kernel = torch.full((1, 1, 3, 3), 1 / 13, device=planes.device)
    kernel[..., 1, 1] = 5 / 13
    smooth = F.conv2d(planes.reshape(-1, 1, *planes.shape[2:]), kernel)
    inner = planes[..., 1:-1, 1:-1]
    inner.copy_(torch.lerp(smooth.view(inner.shape), inner, factor))
    return planes.clamp_(0, 1)


def affine(name: str, strength: np.ndarray, size: int) -> np.ndarray:
    """Maps (n, 2, 3) from pixel centres of the view to those of the source, origin at the top left corner."""
    maps = np.tile(np.eye(2, 3), (len(strength), 1, 1))
    if name == "rotate":
        angle = np.deg2rad(np.trunc(30 * strength))
        maps[:, 0, 0] = maps[:, 1, 1] = np.cos(angle)
        maps[:, 0, 1], maps[:, 1, 0] = -np.sin(angle), np.sin(angle)
        centre = np.full(2, size / 2)
        maps[:, :, 2] = centre - maps[:, :, :2] @ centre
    elif name.startswith("shear"):
        maps[:, *((0, 1) if name == "shear_x" else (1, 0))] = 0.3 * strength
    else:
        maps[:, 0 if name == "translate_x" else 1, 2] = np.trunc(0.3 * strength * size)
    return maps


def warp(planes: Tensor, maps: np.ndarray) -> Tensor:
    """Nearest source pixel under affine maps (n, 2, 3); black where there is none."""
    height, width = planes.shape[2:]
    to_unit = np.array([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])
    square = np.concatenate([maps, np.tile([[[0.0, 0.0, 1.0]]], (len(maps), 1, 1))], axis=1)
    theta = torch.from_numpy((to_unit @ square @ np.linalg.inv(to_unit))[:, :2].astype(np.float32))
    grid = F.affine_grid(to_device(theta, planes.device), [len(maps), 3, height, width], align_corners=False)
    images = F.grid_sample(planes.transpose(0, 1), grid, mode="nearest", align_corners=False)
    return images.transpose(0, 1)


def _column(values: np.ndarray, planes: Tensor) -> Tensor:
    return to_device(np.asarray(values, dtype=np.float32), planes.device)[:, None, None]
