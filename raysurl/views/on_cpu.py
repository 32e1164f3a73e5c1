"""`apply` on a CPU: parameters as compiled code takes them, and parts of the batch for torch's number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from raysurl.views import pixels
from raysurl.views.colour import HUE, hue_centres
from raysurl.views.draws import Draws
from raysurl.views.geometry import Boxes, blur_radius, blur_weights
from raysurl.views.policies import Policy
from raysurl.views.randaugment import randaugment

TOGETHER = 2**18  # values of samples that RandAugment does together: 1 MiB
ALONE = 2**18  # values of a batch up to which other threads would cost more than they bring


def apply(
    policy: Policy,
    images: Tensor | list[Tensor],
    draws: Draws,
    boxes: Boxes,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """One view of b images, as `augment.apply` says; `boxes` are resolved for views of `size`."""
    out = torch.empty(len(images), 3, size, size)
    scale = np.reciprocal(np.asarray(std, np.float32))
    offset = np.negative(mean, dtype=np.float32) * scale
    # RandAugment comes before normalising
    normal = (np.ones_like(scale), np.zeros_like(offset)) if policy.randaugment else (scale, offset)
    given, cubic = _parameters(policy, draws, boxes, size), policy.interpolation == "bicubic"
    planes = out.view(len(images), 3, size * size).numpy()

    def make(part: slice) -> None:
        group = [images[part]] if isinstance(images, Tensor) else [image[None] for image in images[part]]
        at = part.start
        for several in group:
            source, step = _source(several)
            pixels.make(source, step, at, given, cubic, *normal, planes)
            at += len(several)

    _in_threads(make, len(images), out.numel())
    if policy.randaugment:
        factor, shift = (torch.from_numpy(x)[:, None, None, None] for x in (scale, offset))
        step = max(1, TOGETHER // (3 * size * size))
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            view = out[rows].transpose(0, 1)
            randaugment(view, draws[rows])
            view.mul_(factor).add_(shift)
    return out


def _parameters(policy: Policy, draws: Draws, boxes: Boxes, size: int) -> pixels.Parameters:
    active = draws.jitter[:, None] & (torch.tensor(policy.jitter) > 0)[draws.order]
    sigma, kernel = draws.sigma.numpy(), policy.kernel(size)
    radius = blur_radius(sigma, kernel) * draws.blur.numpy()
    weights = blur_weights(sigma, kernel)[:, : radius.max() + 1]
    return pixels.Parameters(
        boxes=np.stack([getattr(boxes, field.name) for field in fields(boxes)], axis=1),
        flip=draws.flip.numpy(),
        order=draws.order.where(active, pixels.NONE).numpy(),
        factors=draws.factors.contiguous().numpy(),
        centres=hue_centres(draws.factors[:, HUE]).T.contiguous().numpy(),
        gray=draws.gray.numpy(),
        radius=radius,
        weights=np.ascontiguousarray(weights),
        solarize=draws.solarize.numpy(),
    )


def _source(images: Tensor) -> tuple[pixels.Bytes, int]:
    """Images (n, C, H, W) of one size and `step` as `pixels.make` takes them, not copied where that can be."""
    count, channels, height, width = images.shape
    if channels == 3 and images.is_contiguous(memory_format=torch.channels_last):
        return images.permute(0, 2, 3, 1).reshape(count, 1, height, 3 * width).numpy(), 3
    return images.contiguous().numpy(), 1


def _in_threads(make: Callable[[slice], None], count: int, values: int) -> None:
    """make(part) for parts of `count` samples, which cover them all."""
    threads = min(torch.get_num_threads(), count) if values > ALONE else 1
    ends = [count * k // threads for k in range(threads + 1)]
    first, *others = [slice(begin, end) for begin, end in pairwise(ends)]
    if not others:
        make(first)
        return
    with ThreadPoolExecutor(len(others)) as pool:
        jobs = [pool.submit(make, part) for part in others]
        make(first)
        for job in jobs:
            job.result()
