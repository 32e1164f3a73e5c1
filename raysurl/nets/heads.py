"""Projection and prediction heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn


def mlp(
    dim: int,
    hidden: int,
    out: int,
    make_norm: Callable[[int], nn.Module] | None,
    *,
    layers: int = 2,
    output_norm: Literal["none", "affine", "plain"] = "none",
    bias: bool = True,
) -> nn.Sequential:
    """Linear–BN–ReLU for each of `layers` − 1 hidden layers, then Linear, (b, dim) -> (b, out).

    Without any norm where `make_norm` is None. `output_norm` puts one behind the last layer too: `affine` with a
    learned scale and shift, `plain` with those fixed at 1 and 0. `bias`: of the Linear layers, the last included.
    """
    parts: list[nn.Module] = []
    for width in [dim, *[hidden] * (layers - 2)]:
        norm = [make_norm(hidden)] if make_norm else []
        parts += [nn.Linear(width, hidden, bias=bias), *norm, nn.ReLU(inplace=True)]
    parts.append(nn.Linear(hidden, out, bias=bias))
    if make_norm and output_norm != "none":
        parts.append(make_norm(out).requires_grad_(output_norm == "affine"))
    return nn.Sequential(*parts)
