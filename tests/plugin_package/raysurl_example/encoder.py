"""Patches of an image, each seen alone, and the mean of what is seen."""

from __future__ import annotations

from torch import Tensor, nn


class Patches(nn.Module):
    def __init__(self, width: int = 16, patch: int = 4, *, channels: int = 3) -> None:
        super().__init__()
        self.cut = nn.Conv2d(channels, width, patch, stride=patch)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(self.cut(x)).relu()).mean(dim=(2, 3))
