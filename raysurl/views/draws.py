"""The random parameters of a view: drawn for the whole global batch, a pure function of (seed, step, view).

Letters: B global batch, R operations of RandAugment. Nothing here depends on the size of an image, which only
the rank that holds it knows; `raysurl.views.geometry.crop_boxes` turns the attempts below into pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from raysurl.streams import numpy_stream
from raysurl.views.policies import Policy

ATTEMPTS = 10  # of a random resized crop to fit inside its image, as in torchvision
JITTERS = 4  # brightness, contrast, saturation, hue
OPERATIONS = 14  # in RandAugment's pool
LEVELS = 9  # of a RandAugment operation, 1 … 9 of 10 (CLSA draws `randint(1, 10)`)


@dataclass(frozen=True)
class Draws:
    """Parameters of B samples, CPU tensors whose first dimension is the position in the global batch."""

    crop: Tensor  # (B, 10, 2) uniform: area and log ratio of each attempt
    place: Tensor  # (B, 2) uniform: top and left of the crop, as a share of the free play
    flip: Tensor  # (B,) bool
    jitter: Tensor  # (B,) bool
    factors: Tensor  # (B, 4): factors of brightness, contrast, saturation; shift of the hue in turns
    order: Tensor  # (B, 4) int64: the jitter operations (0 … 3 as in `factors`) in their order
    gray: Tensor  # (B,) bool
    blur: Tensor  # (B,) bool
    sigma: Tensor  # (B,) pixels
    solarize: Tensor  # (B,) bool
    operation: Tensor  # (B, R) int64: which RandAugment operation, 0 … 13; −1: this one is left out
    level: Tensor  # (B, R) int64: its strength, 1 … 9
    negative: Tensor  # (B, R) bool: turn, shear or move the other way

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, positions: slice | Tensor) -> Draws:
        return Draws(**{field.name: getattr(self, field.name)[positions] for field in fields(self)})


def draw(policy: Policy, batch_size: int, *, seed: int, step: int, view: str) -> Draws:
    """Draw the parameters of the `batch_size` samples of global batch `step`.

    Every operation owns fixed columns of a table of uniform numbers, so switching one off, or changing its
    strength, leaves the numbers of all others as they were, and position i never depends on the batch size.
    """
    counts = [2 * ATTEMPTS, 2, 1, 1, JITTERS, JITTERS, 1, 1, 1, 1]
    columns = torch.split(_uniform(numpy_stream(seed, step, view), batch_size, sum(counts)), counts, dim=1)
    crop, place, flip, jitter, factors, order, gray, blur, sigma, solarize = columns
    pool = _uniform(numpy_stream(seed, step, view, "randaugment"), batch_size, 4 * policy.randaugment)
    which, use, level, sign = pool.view(batch_size, policy.randaugment, 4).unbind(2)

    strength = torch.tensor(policy.jitter)
    low = torch.cat([(1 - strength[:3]).clamp(min=0), -strength[3:]])
    high = torch.cat([1 + strength[:3], strength[3:]])
    return Draws(
        crop=crop.reshape(-1, ATTEMPTS, 2),
        place=place,
        flip=flip[:, 0] < policy.flip,
        jitter=jitter[:, 0] < policy.jitter_p,
        factors=torch.lerp(low, high, factors),
        order=order.argsort(dim=1, stable=True),
        gray=gray[:, 0] < policy.gray_p,
        blur=blur[:, 0] < policy.blur_p,
        sigma=policy.blur_sigma[0] + (policy.blur_sigma[1] - policy.blur_sigma[0]) * sigma[:, 0],
        solarize=solarize[:, 0] < policy.solarize_p,
        operation=(which * OPERATIONS).long().where(use < policy.randaugment_p, -1),
        level=1 + (level * LEVELS).long(),
        negative=sign < 0.5,
    )


def _uniform(random: np.random.Generator, rows: int, columns: int) -> Tensor:
    """Numbers in [0, 1), float32."""
    return torch.from_numpy(random.random((rows, columns), dtype=np.float32))
