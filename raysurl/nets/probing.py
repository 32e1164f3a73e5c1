"""What a network gives for empty images of each size, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from raysurl.errors import InputError


def outputs(
    net: nn.Module, count: int, channels: int, sizes: Sequence[int], cannot: Callable[[int, Exception], str]
) -> dict[int, Any]:
    """Size -> its output for `count` images (channels, size, size), in evaluation mode.

    Raises InputError, which `cannot` words, where the network raises anything.
    """
    was, found = net.training, {}
    net.eval()
    for size in dict.fromkeys(sizes):
        try:
            with _disable_current_modes(), torch.no_grad():  # no weights are drawn here
                found[size] = net(torch.zeros(count, channels, size, size))
        except Exception as error:  # of whatever layer is the first that cannot
            raise InputError(cannot(size, error)) from None
    net.train(was)
    return found
