"""Compile the code of views into the cache of numba: `python -m raysurl.views.compiling`, once on a machine."""

from __future__ import annotations

import torch

from raysurl.views.augment import apply
from raysurl.views.draws import draw
from raysurl.views.policies import POLICIES


def main() -> None:
    """One small view: compiled code is the same for all sizes and settings."""
    policy, image = POLICIES["contrastive"], torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    drawn = draw(policy, 1, seed=0, step=0, view="view")
    apply(policy, image, drawn, size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


if __name__ == "__main__":
    main()
