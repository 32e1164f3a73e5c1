"""Many linear classifiers trained together: each batch is read once, and one matrix product serves them all.

They have the same initial weights and see the same batches, and differ in learning rate and weight decay. What one of
them does is what it would do alone: SGD as torch has it, Adam, or LARS as raysurl.train.optim has it (biases and their
decay left out). The gradients of the losses are written out, which costs less than recording them.

Letters: K heads, B batch, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl.recipe.probes import Probe

TRUST = 1e-3  # of LARS
LEAST = -60.0  # log of a probability
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
MILESTONES = (0.6, 0.8)  # shares of the epochs after which the learning rate falls to a tenth


Errors = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of logits (K, C, B) and what is known of the batch: gradients by the logits of each image, and mean losses (K,)."""


class Heads:
    """K heads on features (…, D): `weight` (K, C, D) begins as `start` (C, D), `bias` (K, C) as zero."""

    def __init__(
        self, start: Tensor, probe: Probe, lrs: Sequence[float], decays: Sequence[float], errors: Errors
    ) -> None:
        self.probe, self.errors = probe, errors
        self.pairs = list(product(lrs, decays))
        k, (classes, dim) = len(self.pairs), start.shape
        self.weight = start.expand(k, classes, dim).contiguous()
        self.bias = start.new_zeros(k, classes)
        self.lrs, self.decays = (
            start.new_tensor(column).view(k, 1, 1) for column in zip(*self.pairs, strict=True)
        )
        self.decayed = any(decays)
        self.state = [[torch.zeros_like(part) for _ in range(2)] for part in (self.weight, self.bias)]
        self.steps = 0
        self.loss = start.new_zeros(k)  # sum over the batches since it was last read

    def __len__(self) -> int:
        return len(self.pairs)

    def step(self, rows: Tensor, labels: Tensor, factor: float) -> None:
        """One step on rows (B, D) and labels (B,), or tags (B, C), at `factor` times the learning rates."""
        k, classes, dim = self.weight.shape
        # batch last, so that what is done over classes is done to whole rows of the batch at once
        logits = torch.addmm(self.bias.view(-1, 1), self.weight.view(-1, dim), rows.T).view(k, classes, -1)
        error, loss = self.errors(logits, labels)
        self.loss += loss
        error = error.view(-1, len(rows)).div_(len(rows))
        self.steps += 1
        update = _UPDATES[self.probe.optimizer]
        of_weight, of_bias = (error @ rows).view_as(self.weight), error.sum(1).view_as(self.bias)
        if self.decayed:
            of_weight.addcmul_(self.weight, self.decays)
        if self.decayed and self.probe.optimizer != "lars":
            of_bias.addcmul_(self.bias, self.decays[..., 0])
        for part, gradient, state, lrs in (
            (self.weight, of_weight, self.state[0], self.lrs),
            (self.bias, of_bias, self.state[1], self.lrs[..., 0]),
        ):
            part.addcmul_(update(self, part, gradient, state), lrs, value=-factor)

    def logits(self, rows: Tensor, head: int) -> Tensor:
        """(n, C) of rows (n, D)."""
        return torch.addmm(self.bias[head], rows, self.weight[head].T)

    def finite(self) -> list[bool]:
        """Which heads have diverged neither in weights nor in loss."""
        sums = self.weight.sum((1, 2)) + self.bias.sum(1) + self.loss
        return torch.isfinite(sums).tolist()


def of_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of labels (B,): its gradient by each image's logits (K, C, B), which are written over, and
    its mean (K,)."""
    chosen = labels.expand(len(logits), 1, -1)
    # no number so small that a CPU takes a hundred times as long over it
    logits = logits.sub_(logits.amax(1, keepdim=True)).clamp_min_(LEAST)
    own = logits.gather(1, chosen)
    error = logits.exp_()
    total = error.sum(1, keepdim=True)
    error /= total
    loss = (total.log_() - own).mean((1, 2))
    minus_one = error.new_full((1, 1, 1), -1.0).expand(len(error), 1, len(labels))
    return error.scatter_add_(1, chosen, minus_one), loss


def of_tags(logits: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    """The same of binary cross-entropy, summed over classes, of tags (B, C) in {1, 0, −1 = no part in it}."""
    present, judged = (tags.T == 1).to(logits), (tags.T >= 0).to(logits)
    loss = (
        F.binary_cross_entropy_with_logits(logits, present.expand_as(logits), reduction="none") * judged
    ).sum(1)
    return logits.sigmoid_().sub_(present).mul_(judged), loss.mean(1)


def _momentum(heads: Heads, gradient: Tensor, state: list[Tensor]) -> Tensor:
    buffer = state[0].mul_(heads.probe.momentum).add_(gradient)
    return gradient.add(buffer, alpha=heads.probe.momentum) if heads.probe.nesterov else buffer


def _sgd(heads: Heads, part: Tensor, gradient: Tensor, state: list[Tensor]) -> Tensor:
    return _momentum(heads, gradient, state)


def _lars(heads: Heads, part: Tensor, gradient: Tensor, state: list[Tensor]) -> Tensor:
    if part.ndim == 3:
        own, its = part.flatten(1).norm(dim=1), gradient.flatten(1).norm(dim=1)
        ratio = torch.where((own > 0) & (its > 0), TRUST * own / its.clamp_min(1e-12), 1.0)
        gradient = gradient * ratio[:, None, None]
    return _momentum(heads, gradient, state)


def _adam(heads: Heads, part: Tensor, gradient: Tensor, state: list[Tensor]) -> Tensor:
    mean, square = state
    mean.lerp_(gradient, 1 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    unbiased = math.sqrt(1 - BETAS[1] ** heads.steps)
    return (mean / square.sqrt().div_(unbiased).add_(EPSILON)).div_(1 - BETAS[0] ** heads.steps)


_UPDATES: dict[str, Callable[[Heads, Tensor, Tensor, list[Tensor]], Tensor]] = {
    "sgd": _sgd,
    "lars": _lars,
    "adam": _adam,
}


def factor_of(probe: Probe, step: int, steps_per_epoch: int) -> float:
    """Of the learning rates at a step: the scaling with the batch, and the schedule (a cosine by step)."""
    scale = probe.batch_size / probe.lr_batch if probe.lr_batch else 1.0
    if probe.schedule == "cosine":
        return scale * 0.5 * (1 + math.cos(math.pi * step / (probe.epochs * steps_per_epoch)))
    if probe.schedule == "step":
        epoch = step // steps_per_epoch
        return scale * 0.1 ** sum(epoch >= math.floor(probe.epochs * share) for share in MILESTONES)
    return scale
