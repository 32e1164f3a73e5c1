"""Constants where they are used: copied to a device once, not at each step."""

from __future__ import annotations

import torch
from torch import Tensor


class Constant:
    """A tensor that stays as it is for a run."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._on = {value.device: value}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._on:
            self._on[device] = self.value.to(device)
        return self._on[device]
