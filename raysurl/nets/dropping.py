"""Dropout and stochastic depth whose draws are those of a step, so that a resumed run makes them again.

Libraries draw from the stream that the whole process shares. `seeded` puts layers in the place of theirs that draw from
a generator, and `draw` gives it to them, of a stream of its own for each step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from raysurl import streams
from raysurl.errors import InputError


class Dropout(nn.Dropout):
    """Dropout whose masks come from `draws`, which the trainer sets anew for each step; None: torch's own stream."""

    draws: torch.Generator | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"draws": None}  # a copy waits for draws of its own

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=self.draws).div_(1 - self.p)


class DropPath(Dropout):
    """Stochastic depth (Huang et al. 2016) of a residual branch: with probability `p` a sample goes without it, and
    what is kept is divided by 1 − p. Input (b, …)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.p, generator=self.draws)
        return x * kept.div_(1 - self.p)


def seeded(module: nn.Module) -> nn.Module:
    """The module with layers that can be seeded for those of torch, torchvision and timm that draw; names stay.

    Raises InputError where one of another kind draws.
    """
    for name, child in module.named_children():
        setattr(module, name, _seeded(child))
    return module


def _seeded(module: nn.Module) -> nn.Module:
    kind = type(module)
    if kind.__name__ == "DropPath" and hasattr(module, "drop_prob"):  # timm's
        return DropPath(float(module.drop_prob or 0))  # type: ignore[arg-type]
    if kind.__name__ == "StochasticDepth" and getattr(module, "mode", "") == "row":  # torchvision's
        return DropPath(float(module.p))  # type: ignore[arg-type]
    if kind is nn.Dropout:
        return Dropout(module.p)  # type: ignore[arg-type]
    if isinstance(module, _DropoutNd) and module.p and not isinstance(module, Dropout):
        raise InputError(
            f"the encoder draws {kind.__name__}, of which a step cannot be repeated; set it to 0"
        )
    return seeded(module)


def layers_that_draw(module: nn.Module) -> list[Dropout]:
    return [m for m in module.modules() if isinstance(m, Dropout) and m.p]


def draw(layers: list[Dropout], seed: int, step: int, rank: int, device: torch.device) -> None:
    """A step's masks: one stream for all layers of a rank."""
    if not layers:
        return
    draws = streams.torch_stream(seed, "dropout", step, rank, device=device)
    for layer in layers:
        layer.draws = draws
