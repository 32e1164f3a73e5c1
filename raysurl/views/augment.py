"""Apply a policy to a batch: crop, flip, jitter, grey, blur, solarize, RandAugment, normalise, in this order.

Letters: b images, S pixels of the view. The parameters come from `raysurl.views.draws`. On a CPU compiled code makes
one image after another (raysurl.views.on_cpu), by as many threads as torch has; a GPU does each operation to all images
at once (raysurl.views.fixed), and is never waited for. What either makes of a sample does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from raysurl.errors import InputError
from raysurl.views.colour import to_device
from raysurl.views.draws import Draws
from raysurl.views.fixed import FixedView
from raysurl.views.geometry import Boxes, Ints, crop_boxes, resize_each
from raysurl.views.policies import Policy
from raysurl.views.randaugment import randaugment

Images = Tensor | list[Tensor]
"""uint8 (b, 3, H, W), or a list of (3, h, w) where sizes differ; 1 channel means grey. Or (b, D) vectors."""


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
    _checked(images)
    if len(draws) != len(images):
        raise InputError(f"{len(draws)} draws were given for {len(images)} images; give one for each")
    check_policy(policy, size, "policy")
    size = policy.size or size
    if not len(images):
        return torch.empty(0, 3, size, size, device=device)
    boxes = crop_boxes(policy, draws, *_sides(images), size)
    with torch.autocast(device.type, enabled=False):  # pixels are not to be rounded to bf16
        if device.type != "cpu":
            return _on_device(policy, images, draws, boxes, size, mean, std, device)
        from raysurl.views import on_cpu  # loading compiled code takes half a second

        return on_cpu.apply(policy, images, draws, boxes, size, mean, std)


def are_vectors(images: Images) -> TypeGuard[Tensor]:
    return isinstance(images, Tensor) and images.ndim == 2


def untouched(policy: Policy, vectors: Tensor, device: torch.device | str) -> Tensor:
    """The view of vectors (b, D), which nothing is drawn for: as they are, on `device`. Raises as `apply` does."""
    if not policy.is_identity:
        raise InputError("vectors cannot be augmented: use the policy plain for every view of vector data")
    if not vectors.is_floating_point():
        raise InputError(f"vectors must be float (b, D), got {vectors.dtype}")
    return vectors.to(device, non_blocking=True)


def _on_device(
    policy: Policy,
    images: Images,
    draws: Draws,
    boxes: Boxes,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> Tensor:
    source = (images.shape[2], images.shape[3]) if isinstance(images, Tensor) else None
    view = FixedView(policy, size=size, mean=mean, std=std, source=source)
    if not isinstance(images, Tensor):
        images = resize_each(images, boxes, size, policy.interpolation)
    planes = view.planes(to_device(images, device), to_device(view.rows(draws), device))
    if policy.randaugment:
        randaugment(planes, draws)
    return view.normalised(planes, torch.empty(len(images), 3, size, size, device=device))


def _sides(images: Images) -> tuple[Ints, Ints]:
    """Heights and widths (b,) of the images."""
    if isinstance(images, Tensor):
        return np.full(len(images), images.shape[2]), np.full(len(images), images.shape[3])
    sides = np.array([image.shape[1:] for image in images], dtype=np.int64).reshape(-1, 2)
    return sides[:, 0], sides[:, 1]


def _checked(images: Images) -> None:
    """Raises InputError for another type or shape."""
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
