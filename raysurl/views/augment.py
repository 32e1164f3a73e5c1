"""Apply a policy to a batch: crop, flip, jitter, grey, blur, solarize, RandAugment, normalise, in this order.

Letters: b images, S pixels of the view. The parameters come from `raysurl.views.draws`; which samples an operation
touches is decided on the CPU from them, so a GPU is never waited for. On a CPU the batch is done in chunks
small enough to stay in the cache of a core through all operations; a GPU does it at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from raysurl.errors import InputError
from raysurl.views.colour import Jitter, solarize, to_device, to_gray
from raysurl.views.draws import Draws
from raysurl.views.geometry import (
    TAIL,
    Boxes,
    Ints,
    blur,
    blur_weights,
    crop_boxes,
    resize_each,
    resize_together,
    row_taps,
)
from raysurl.views.policies import Policy
from raysurl.views.randaugment import randaugment

Images = Tensor | list[Tensor]
"""uint8 (b, 3, H, W), or a list of (3, h, w) where sizes differ; 1 channel means grey. Or (b, D) vectors."""

CHUNK = 2**18  # values of a chunk on the CPU: 1 MiB of float32
SMALL = 48 * 48  # source pixels up to which matrix products beat resizing image by image on a CPU


def check_policy(policy: Policy, size: int, name: str) -> None:
    """Raises InputError where a policy cannot be applied at views of `size` pixels."""
    size = policy.size or size
    if policy.blur_p and policy.kernel(size) // 2 >= size:
        raise InputError(
            f"{name}.blur_kernel={policy.kernel(size)} is too wide for a view of {size} pixels;"
            f" use at most {2 * size - 1}"
        )


@torch.no_grad()
def apply(
    policy: Policy,
    images: Images,
    draws: Draws,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
) -> Tensor:
    """One view of b images: (b, 3, S, S) float32 on `device`, normalised; S = policy.size or `size`.

    Vectors (b, D) float are returned as they are, on `device`. Raises InputError for images of another type
    or shape, for vectors under a policy that does more than resize, and for draws of another number of samples.
    """
    device = torch.device(device)
    if are_vectors(images):
        return untouched(policy, images, device)
    images = _checked(images)
    if len(draws) != len(images):
        raise InputError(f"{len(draws)} draws were given for {len(images)} images; give one for each")
    check_policy(policy, size, "policy")
    size = policy.size or size
    boxes = crop_boxes(policy, draws, *_sides(images), size)
    jitter = Jitter.of(draws, policy.jitter, device) if policy.jitter_p else None

    scale = torch.tensor(std).reciprocal()
    table = to_device(torch.stack([scale, -torch.tensor(mean) * scale]), device)
    scale, offset = table.view(2, 3, 1, 1, 1)
    out = torch.empty(len(images), 3, size, size, device=device)
    step = _chunk(len(images), size) if device.type == "cpu" else max(1, len(images))
    with torch.autocast(device.type, enabled=False):  # pixels are not to be rounded to bf16
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            planes = _crop(policy, images[rows], boxes[rows], draws.flip[rows], size, device)
            if jitter is not None:
                jitter[rows].apply(planes)
            planes = _finish(policy, planes, draws[rows])
            torch.mul(planes, scale, out=out[rows].transpose(0, 1)).add_(offset)
    return out


def are_vectors(images: Images) -> TypeGuard[Tensor]:
    return isinstance(images, Tensor) and images.ndim == 2


def untouched(policy: Policy, vectors: Tensor, device: torch.device | str) -> Tensor:
    """The view of vectors (b, D), which nothing is drawn for: as they are, on `device`. Raises as `apply` does."""
    if not policy.is_identity:
        raise InputError("vectors cannot be augmented: use the policy plain for every view of vector data")
    if not vectors.is_floating_point():
        raise InputError(f"vectors must be float (b, D), got {vectors.dtype}")
    return vectors.to(device, non_blocking=True)


def _chunk(count: int, size: int) -> int:
    """Samples per chunk, about CHUNK values: the batch in equal parts, so that no small rest costs a whole one."""
    fitting = max(1, CHUNK // (3 * size * size))
    return max(1, math.ceil(count / max(1, round(count / fitting))))


def _crop(
    policy: Policy, images: Images, boxes: Boxes, flip: Tensor, size: int, device: torch.device
) -> Tensor:
    """Planes (3, n, S, S) in [0, 1] of n images."""
    dense = isinstance(images, Tensor) and (
        images.device.type != "cpu" or device.type != "cpu" or images[0, 0].numel() <= SMALL
    )
    as_it_is = policy.crop is None and policy.margin == 1 and images[0].shape[1:] == (size, size)
    if isinstance(images, Tensor) and dense and not as_it_is:
        table = np.stack([getattr(boxes, name) for name in boxes.__dataclass_fields__])
        parameters, flips = to_device(table.astype(np.float32), device), to_device(flip, device)
        pixels = to_device(images, device)
        taps = row_taps(boxes, policy.interpolation)
        return _expand(resize_together(pixels, parameters, flips, size, policy.interpolation, taps))
    if isinstance(images, Tensor) and dense:
        pixels = images
    else:
        pixels = resize_each(list(images), boxes, size, policy.interpolation)
    planes = to_device(pixels, device).transpose(0, 1).to(torch.float32)
    planes = _expand(planes.contiguous()).mul_(1 / 255)
    rows = np.flatnonzero(flip.numpy())
    return _on(rows, planes, lambda part: part.flip(3)) if rows.size else planes


def _finish(policy: Policy, planes: Tensor, draws: Draws) -> Tensor:
    """Grey, blur, solarize and RandAugment, each on the samples that drew it."""
    if (rows := np.flatnonzero(draws.gray.numpy())).size:
        planes = _on(rows, planes, to_gray)
    if (rows := np.flatnonzero(draws.blur.numpy())).size:
        sigma = draws.sigma[torch.from_numpy(rows)]
        kernel = policy.kernel(planes.shape[2])
        radius = min(kernel // 2, int(np.ceil(TAIL * float(sigma.max()))))
        weights = to_device(blur_weights(sigma, kernel), planes.device)
        planes = _on(rows, planes, lambda part: blur(part, weights, radius))
    if (rows := np.flatnonzero(draws.solarize.numpy())).size:
        planes = _on(rows, planes, solarize)
    if policy.randaugment:
        randaugment(planes, draws)
    return planes


def _on(rows: Ints, planes: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """The planes with the samples `rows` replaced by operation(those samples)."""
    if len(rows) == planes.shape[1]:
        return operation(planes)
    index = to_device(rows, planes.device)
    return planes.index_copy_(1, index, operation(planes.index_select(1, index)))


def _sides(images: Images) -> tuple[Ints, Ints]:
    """Heights and widths (b,) of the images."""
    if isinstance(images, Tensor):
        return np.full(len(images), images.shape[2]), np.full(len(images), images.shape[3])
    sides = np.array([image.shape[1:] for image in images], dtype=np.int64).reshape(-1, 2)
    return sides[:, 0], sides[:, 1]


def _checked(images: Images) -> Images:
    """A list of equal sizes becomes one tensor only if it is small; shapes and type are checked."""
    if isinstance(images, Tensor):
        shapes, types = {tuple(images.shape[1:])}, {images.dtype}
        valid = images.ndim == 4
    else:
        shapes, types = {tuple(image.shape) for image in images}, {image.dtype for image in images}
        valid = True
    if not valid or any(len(shape) != 3 or shape[0] not in (1, 3) or 0 in shape for shape in shapes):
        raise InputError(
            f"images must be (b, 3, H, W), or a list of (3, h, w), got shapes {sorted(shapes)[:3]}"
        )
    if types - {torch.uint8}:
        raise InputError(f"images must be uint8, got {', '.join(map(str, types))}")
    if isinstance(images, list) and len(shapes) == 1 and images[0][0].numel() <= SMALL:
        return torch.stack(images)
    if isinstance(images, list) and len({shape[0] for shape in shapes}) > 1:
        return [image.expand(3, -1, -1) for image in images]
    return images


def _expand(planes: Tensor) -> Tensor:
    """Grey images (1, n, S, S) as three equal channels."""
    return planes if planes.shape[0] == 3 else planes.repeat(3, 1, 1, 1)
