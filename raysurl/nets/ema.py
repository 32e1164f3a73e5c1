"""The exponential-moving-average teacher."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raysurl import distributed, streams
from raysurl.method import Moment, Progress


class MomentumTeacher(nn.Module):
    """A frozen copy of the student, followed as t ← m·t + (1 − m)·s (ReSSL eq. 6).

    Only parameters follow; batch-norm statistics are the teacher's own, in train mode, as in the authors' code. It is
    deterministic: nothing but its batch norms is in train mode, so that neither dropout nor stochastic depth is drawn.
    With `shuffle` its batch is shuffled over the ranks before and restored after (shuffle-BN).
    """

    def __init__(self, student: nn.Module, *, shuffle: bool = False) -> None:
        super().__init__()
        self.net = copy.deepcopy(student)
        self.net.requires_grad_(False)
        self.shuffle = shuffle
        self.train()

    def train(self, mode: bool = True) -> MomentumTeacher:
        super().train(mode)
        for module in self.net.modules():
            module.training = mode and isinstance(module, _BatchNorm)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor, progress: Moment) -> Tensor:
        if not self.shuffle or distributed.world_size() == 1:
            out: Tensor = self.net(x)
            return out
        generator = streams.torch_stream(progress.seed, "shuffled batch norm", progress.step)
        order = torch.randperm(len(x) * distributed.world_size(), generator=generator)
        return distributed.unshuffle(self.net(distributed.shuffle(x, order)), order)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float | Tensor) -> None:
        """`momentum` a number, or a 0-d tensor on the device where the step is recorded."""
        own: list[Tensor] = list(self.net.parameters())
        theirs = [p.detach() for p in student.parameters()]
        if isinstance(momentum, Tensor):
            away = torch._foreach_sub(theirs, own)
            torch._foreach_mul_(away, 1 - momentum)
            torch._foreach_add_(own, away)
        else:
            torch._foreach_lerp_(own, theirs, 1 - momentum)


def momentum_at(base: float, schedule: str, progress: Progress) -> float:
    """`constant`: base. `cosine`: from base to 1 over the run (BYOL)."""
    if schedule == "constant":
        return base
    return 1 - (1 - base) * (math.cos(math.pi * progress.step / progress.total_steps) + 1) / 2
