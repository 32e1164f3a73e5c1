"""A view in operations of fixed shapes, for a GPU: what a sample does not draw is done to it without effect.

Compiled code on a CPU (raysurl.views.pixels) does to an image what that image has drawn. On a GPU picking the samples
that an operation touches would cost a launch each time and shapes that change, so that nothing could be recorded. Here
all parameters of a sample are a row of numbers, made on the host; all views' rows travel in one copy; and the device
does the same few operations each step. The result is that of a CPU to rounding. On a GPU crops and blurs are products
in TF32, whose weights of 11 bits change a pixel by less than half a grey level of 255, as rounding an image to bytes
does.

Letters: b images, C channels, H, W source pixels, S pixels of the view, P numbers in a row. Planes are (3, b, S, S).
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property, lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl.views.colour import BRIGHTNESS, CONTRAST, HUE, LUMA, SATURATION, hue_centres, rotate_hue
from raysurl.views.draws import JITTERS, Draws
from raysurl.views.geometry import Boxes, blur_radius, blur_weights, crop_boxes
from raysurl.views.policies import Policy

Rows = NDArray[np.float32]
AXIS = 5  # numbers of each axis of a crop: see `_crop_rows`


class FixedView:
    """One view of images (b, C, H, W) uint8 of one size, or of images that are cropped already (`source` None)."""

    def __init__(
        self,
        policy: Policy,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        source: tuple[int, int] | None,
    ) -> None:
        self.policy, self.size, self.source = policy, policy.size or size, source
        whole = policy.crop is None and policy.margin == 1 and source == (self.size, self.size)
        self.resizes = source is not None and not whole
        self.blends = [
            k for k in (BRIGHTNESS, CONTRAST, SATURATION) if policy.jitter_p and policy.jitter[k] > 0
        ]
        self.hue = bool(policy.jitter_p and policy.jitter[HUE] > 0)
        scale = torch.tensor(std).reciprocal()
        self._normal = (scale.view(3, 1, 1, 1), (-torch.tensor(mean) * scale).view(3, 1, 1, 1))

    @property
    def slots(self) -> int:
        """Blends that a sample may ask for: each before or after the hue is turned."""
        return len(self.blends) * (2 if self.hue else 1)

    @cached_property
    def radius(self) -> int:
        """Of the widest blur; beyond it no weight is left."""
        widest = np.array([self.policy.blur_sigma[1]], np.float32)
        return int(blur_radius(widest, self.policy.kernel(self.size))[0])

    @cached_property
    def widths(self) -> dict[str, int]:
        """Numbers in a row, by what they are for, in their order."""
        p = self.policy
        found = {
            "crop": 2 * AXIS if self.resizes else 0,
            "flip": int(p.flip > 0 and not self.resizes),
            "blend": 3 * self.slots,
            "hue": 3 * self.hue,
            "gray": int(p.gray_p > 0),
            "blur": self.radius + 1 if p.blur_p else 0,
            "solarize": int(p.solarize_p > 0),
        }
        return {name: width for name, width in found.items() if width}

    @cached_property
    def starts(self) -> dict[str, int]:
        """Where these numbers begin in a row."""
        ends = accumulate(self.widths.values())
        return {name: end - width for (name, width), end in zip(self.widths.items(), ends, strict=True)}

    # ---------------------------------------------------------------- on the host

    def rows(self, draws: Draws) -> Rows:
        """The parameters (b, P) of samples whose draws are given."""
        make: dict[str, Callable[[Draws], NDArray[Any]]] = {
            "crop": self._crop_rows,
            "flip": lambda d: d.flip.numpy()[:, None],
            "blend": self._blend_rows,
            "hue": lambda d: hue_centres(d.factors[:, HUE].where(d.jitter, 0.0)).T.numpy(),
            "gray": lambda d: d.gray.numpy()[:, None],
            "blur": self._blur_rows,
            "solarize": lambda d: d.solarize.numpy()[:, None],
        }
        parts = [np.zeros((len(draws), 0), np.float32)]
        return np.concatenate(
            [*parts, *(make[name](draws) for name in self.widths)], axis=1, dtype=np.float32
        )

    def boxes(self, draws: Draws, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> Boxes:
        return crop_boxes(self.policy, draws, heights, widths, self.size)

    def _crop_rows(self, draws: Draws) -> NDArray[np.float64]:
        """For the vertical, then the horizontal axis: pixel k of the view has its centre at c0 + c1·k in the source and
        takes source pixels within a reach of 1/r times the kernel's, between two bounds: c0, c1, r, low, high.
        """
        assert self.source is not None
        count, (height, width) = len(draws), self.source
        box = self.boxes(draws, np.full(count, height), np.full(count, width))
        flip = draws.flip.numpy()
        columns = []
        for start, length, out_length, cut, mirrored in (
            (box.top, box.height, box.out_height, box.cut_top, np.zeros(count, bool)),
            (box.left, box.width, box.out_width, box.cut_left, flip),
        ):
            scale = length / out_length
            first = cut + np.where(mirrored, self.size - 0.5, 0.5)
            step = np.where(mirrored, -1.0, 1.0)
            columns += [start + first * scale, step * scale, 1 / np.maximum(scale, 1), start, start + length]
        return np.stack(columns, axis=1)

    def _blend_rows(self, draws: Draws) -> Rows:
        """(b, 3·slots): what each slot keeps, and its shares of the grey image and of the mean grey."""
        order, factors = draws.order.numpy(), draws.factors.numpy()
        count, per_side = len(order), len(self.blends)
        row = np.arange(count)
        table = np.zeros((count, self.slots, 3), np.float32)
        table[:, :, 0] = 1
        used, side = np.zeros((count, 2), np.int64), np.zeros(count, np.int64)
        for turn in range(JITTERS):
            kind = order[:, turn]
            asked = np.isin(kind, self.blends)
            factor = np.where(draws.jitter.numpy(), factors[row, kind], 1)
            values = np.stack(
                [factor, (1 - factor) * (kind == SATURATION), (1 - factor) * (kind == CONTRAST)], axis=1
            )
            slot = side * per_side + used[row, side]
            table[row[asked], slot[asked]] = values[asked]
            used[row[asked], side[asked]] += 1
            side |= self.hue & (kind == HUE)
        return table.reshape(count, -1)

    def _blur_rows(self, draws: Draws) -> Rows:
        """(b, radius + 1) weights of a side, centre first; those of a sample that is not blurred keep it as it is."""
        weights = blur_weights(draws.sigma.numpy(), self.policy.kernel(self.size))[:, : self.radius + 1]
        none = np.eye(1, self.radius + 1, dtype=np.float32)
        return np.where(draws.blur.numpy()[:, None], weights, none)

    # ---------------------------------------------------------------- on the device

    def __call__(self, images: Tensor, rows: Tensor, out: Tensor) -> Tensor:
        """Write the view (b, 3, S, S) of images (b, C, H, W) uint8 with parameters (b, P) into `out`."""
        return self.normalised(self.planes(images, rows), out)

    @torch.no_grad()
    def planes(self, images: Tensor, rows: Tensor) -> Tensor:
        """The view before normalisation, (3, b, S, S) float32 in [0, 1]."""
        # pixels are not to be rounded to bf16
        with torch.autocast(images.device.type, enabled=False), _products_in_tf32():
            part = dict(zip(self.widths, rows.split(list(self.widths.values()), dim=1), strict=True))
            planes = self._coloured(self._pixels(images, part), rows, part)
            if "blur" in part:
                planes = self._blur(planes, part["blur"])
            if "solarize" in part:  # min(x, 1 − x), and min(x, x) for the others
                planes = torch.minimum(planes, (part["solarize"][:, :, None] - planes).abs_())
            return planes

    @torch.no_grad()
    def normalised(self, planes: Tensor, out: Tensor) -> Tensor:
        """Write planes (3, b, S, S), normalised, into `out` (b, 3, S, S)."""
        scale, offset = (_kept(value, planes.device) for value in self._normal)
        return out.copy_(torch.addcmul(offset, planes, scale).transpose(0, 1))

    def _pixels(self, images: Tensor, part: dict[str, Tensor]) -> Tensor:
        count, channels, height, width = images.shape
        if not self.resizes:
            planes = images.transpose(0, 1).to(torch.float32).mul_(1 / 255)
            if "flip" in part:
                planes = torch.where(part["flip"][:, :, None] > 0, planes.flip(3), planes)
            return planes.expand(3, -1, -1, -1).contiguous()
        axes = part["crop"].view(count, 2, AXIS)
        if height == width:
            down, across = self._weights(axes, height).unbind(1)
        else:
            down, across = self._weights(axes[:, :1], height)[:, 0], self._weights(axes[:, 1:], width)[:, 0]
        source = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        lines = torch.bmm(down, source.view(count, height, channels * width))  # (b, S, C·W)
        pixels = torch.bmm(lines.view(count, self.size * channels, width), across.transpose(1, 2))
        planes = pixels.view(count, self.size, channels, self.size).permute(2, 0, 1, 3).mul(1 / 255)
        if self.policy.interpolation == "bicubic":
            planes.clamp_(0, 1)  # cubic weights overshoot
        return planes.expand(3, -1, -1, -1).contiguous()

    def _weights(self, axes: Tensor, length: int) -> Tensor:
        """Of source pixels in the pixels of the view: axes (b, A, 5) -> (b, A, S, length)."""
        first, step, reach, low, high = axes[..., None, None].unbind(2)
        centre = torch.addcmul(first, step, _steps(self.size, 0.0, axes.device)[:, None])
        pixel = _steps(length, 0.5, axes.device)
        distance = (pixel - centre).abs_().mul_(reach)
        cubic = self.policy.interpolation == "bicubic"
        weight = _cubic(distance) if cubic else (1 - distance).clamp_(min=0)
        weight.mul_((pixel > low) & (pixel < high))
        return weight.div_(weight.sum(3, keepdim=True))

    def _coloured(self, planes: Tensor, rows: Tensor, part: dict[str, Tensor]) -> Tensor:
        """Jitter and grey: by two kernels where a GPU is, else an operation at a time."""
        asked = part.keys() & {"blend", "hue", "gray"}
        if asked and planes.is_cuda and (colours := _kernels()):
            return colours(planes, rows, self.starts, self.slots, len(self.blends))
        if "blend" in part or "hue" in part:
            planes = self._jitter(planes, part)
        if "gray" in part:
            planes = torch.lerp(planes, _luma(planes), part["gray"][:, :, None])
        return planes

    def _jitter(self, planes: Tensor, part: dict[str, Tensor]) -> Tensor:
        blends = part["blend"].unflatten(1, (self.slots, 3)) if "blend" in part else planes.new_empty(1, 0, 3)
        for slot in range(self.slots + 1):
            if self.hue and slot == len(self.blends):
                rotate_hue(planes, part["hue"].T[:, :, None, None])
            if slot < self.slots:
                keep, gray, mean = blends[:, slot, :, None, None].unbind(1)
                luma = _luma(planes)
                offset = torch.addcmul(luma.mean((1, 2), keepdim=True) * mean, luma, gray)
                planes = torch.addcmul(offset, planes, keep).clamp_(0, 1)
        return planes

    def _blur(self, planes: Tensor, weights: Tensor) -> Tensor:
        """Both directions as products with one banded matrix (S, S) for each sample."""
        taps = _reflected(self.size, self.radius, planes.device)
        matrix = (weights @ taps.flatten(1)).view(-1, self.size, self.size)
        return matrix @ planes @ matrix.transpose(1, 2)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic kernel of distances x ≥ 0; a = −0.5 is what antialiased bicubic uses."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


@cache
def _kernels() -> Callable[..., Tensor] | None:
    """`raysurl.views.fused.colours`, where a GPU and Triton are at hand, as with torch's own wheels they are."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return None
    from raysurl.views import fused

    return fused.colours


@contextlib.contextmanager
def _products_in_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _luma(planes: Tensor) -> Tensor:
    """Grey value (b, S, S), in one operation."""
    weights = _kept(torch.tensor(LUMA), planes.device)
    return torch.mv(planes.view(3, -1).T, weights).view(planes.shape[1:])


_KEPT: dict[tuple[bytes, torch.Size, torch.device], Tensor] = {}


def _kept(value: Tensor, device: torch.device) -> Tensor:
    """A small constant on the device, copied there once."""
    key = (value.numpy().tobytes(), value.shape, device)
    if key not in _KEPT:
        _KEPT[key] = value.to(device)
    return _KEPT[key]


@lru_cache(maxsize=64)
def _steps(count: int, first: float, device: torch.device) -> Tensor:
    return (torch.arange(count, dtype=torch.float32) + first).to(device)


@lru_cache(maxsize=16)
def _reflected(size: int, radius: int, device: torch.device) -> Tensor:
    """(radius + 1, S, S): which pixels lie at a distance from pixel i on either side, reflected at the borders."""
    taps = torch.zeros(radius + 1, size, size)
    for offset in range(-radius, radius + 1):
        for i in range(size):
            at = abs(i + offset)
            at = at if at < size else 2 * (size - 1) - at
            taps[abs(offset), i, at] += 1
    return taps.to(device)
