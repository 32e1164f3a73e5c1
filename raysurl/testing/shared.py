"""The random generators that a process shares, put elsewhere: what draws from them is found to differ."""

from __future__ import annotations

import random

import numpy as np
import torch


def disturb() -> None:
    """Draw from each of them."""
    random.random()
    np.random.random()
    torch.rand(1)
