"""Projection and prediction heads."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def mlp(dim: int, hidden: int, out: int, make_norm: Callable[[int], nn.Module] | None) -> nn.Sequential:
    """Linear–BN–ReLU–Linear, (b, dim) -> (b, out); without the norm where `make_norm` is None."""
    norm = [make_norm(hidden)] if make_norm else []
    return nn.Sequential(nn.Linear(dim, hidden), *norm, nn.ReLU(inplace=True), nn.Linear(hidden, out))
