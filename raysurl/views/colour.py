"""What colour operations share: grey, the hue and its turning, on planes (3, n, H, W) float in [0, 1].

Brightness, contrast and saturation are all "blend with something grey, then clamp": with black, the mean grey, the grey
image. Formulas are torchvision's.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl.views.draws import JITTERS

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(JITTERS)
LUMA = (0.2989, 0.587, 0.114)
HUE_CENTRES = (3.0, 5.0, 1.0)  # in sixths of a turn: the hue opposite to red, green, blue
TINY = 1e-12


def luma(planes: Tensor) -> Tensor:
    """Grey value (n, H, W)."""
    red, green, blue = planes.unbind(0)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def rotate_hue(planes: Tensor, centres: Tensor) -> None:
    """Turn the hue, keeping value and chroma of HSV; centres (3, n, 1, 1) from `hue_centres`.

    The distance of the hue from red, in sixths of a turn, is 1 + (g + b − r − min) / chroma in every sextant,
    and its sign that of g − b. With hue h, value V and chroma C a channel is
    V − C·clamp(||h − c| − 3| − 1, 0, 1), where c is the hue opposite to the channel. Turning the hue moves c
    instead, once per sample: no case distinction and no remainder is left to be done per pixel.
    """
    red, green, blue = planes.unbind(0)
    lowest = torch.minimum(red, green)
    torch.minimum(lowest, blue, out=lowest)
    value = torch.maximum(red, green)
    torch.maximum(value, blue, out=value)
    hue = torch.add(green, blue).sub_(red).sub_(lowest)
    chroma = torch.sub(value, lowest, out=lowest)
    hue.div_(chroma.clamp(min=TINY)).add_(1)
    hue.copysign_(torch.sub(green, blue))
    share = torch.sub(hue, centres, out=planes).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1).mul_(chroma)
    torch.sub(value, share, out=planes)


def hue_centres(shift: Tensor) -> Tensor:
    """Shift of the hue (n,) in turns -> centres (3, n) in [−3, 3), so that |h − c| ≤ 6 for h in [−3, 3]."""
    centres = torch.tensor(HUE_CENTRES, device=shift.device)[:, None] - 6 * shift
    return torch.remainder(centres + 3, 6) - 3


def to_device(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """Move what was chosen on the CPU to the device without waiting for either: pageable memory would wait."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
