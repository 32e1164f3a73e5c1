"""Methods as lightly's users put them together: its heads, losses and averages around a given encoder.

Each class takes the sizes of our recipe's method and gives the loss of two views; `after_step` moves what is averaged.
Rates and decays are our recipe's, but for BYOL, whose loss here is a quarter of the paper's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly import loss as losses
from lightly.models import modules, utils
from lightly.models.modules import heads
from torch import Tensor, nn


class Contrastive(nn.Module):
    """SimCLR."""

    def __init__(self, encoder: Any, config: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = modules.SimCLRProjectionHead(encoder.dim, config.hidden, config.dim)
        self.criterion: Any = losses.NTXentLoss(config.tau)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        loss: Tensor = self.criterion(self.head(self.encoder(first)), self.head(self.encoder(second)))
        return loss

    def after_step(self) -> None:
        """Nothing is averaged."""


class Barlow(Contrastive):
    def __init__(self, encoder: Any, config: Any) -> None:
        super().__init__(encoder, _Sizes(config))
        self.head = modules.BarlowTwinsProjectionHead(encoder.dim, config.hidden, config.dim)
        self.criterion = losses.BarlowTwinsLoss(config.redundancy)


class VICReg(Contrastive):
    def __init__(self, encoder: Any, config: Any) -> None:
        super().__init__(encoder, _Sizes(config))
        self.head = heads.VICRegProjectionHead(encoder.dim, config.hidden, config.dim)
        self.criterion = losses.VICRegLoss(config.invariance, config.variance, config.covariance)


class NNCLR(Contrastive):
    def __init__(self, encoder: Any, config: Any) -> None:
        super().__init__(encoder, config)
        self.head = modules.NNCLRProjectionHead(encoder.dim, config.hidden, config.dim)
        self.predictor = modules.NNCLRPredictionHead(config.dim, config.predictor_hidden, config.dim)
        self.bank = modules.NNMemoryBankModule(size=(config.queue_size, config.dim))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        z = [self.head(self.encoder(view)) for view in (first, second)]
        p = [self.predictor(rows) for rows in z]
        near = [self.bank(z[0].detach(), update=False), self.bank(z[1].detach(), update=True)]
        loss: Tensor = (self.criterion(near[0], p[1]) + self.criterion(near[1], p[0])) / 2
        return loss


class MoCo(nn.Module):
    """MoCo v2."""

    def __init__(self, encoder: Any, config: Any) -> None:
        super().__init__()
        self.encoder, self.momentum = encoder, config.momentum
        self.head = modules.MoCoProjectionHead(encoder.dim, config.hidden, config.dim)
        self.average = copy.deepcopy(nn.Sequential(encoder, self.head)).requires_grad_(False)
        self.criterion = losses.NTXentLoss(config.tau, memory_bank_size=(config.queue_size, config.dim))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        with torch.no_grad():
            key = self.average(second)
        loss: Tensor = self.criterion(self.head(self.encoder(first)), key)
        return loss

    def after_step(self) -> None:
        utils.update_momentum(nn.Sequential(self.encoder, self.head), self.average, m=self.momentum)


class BYOL(nn.Module):
    def __init__(self, encoder: Any, config: Any) -> None:
        super().__init__()
        self.encoder, self.momentum = encoder, config.momentum
        self.head = modules.BYOLProjectionHead(encoder.dim, config.hidden, config.dim)
        self.predictor = modules.BYOLPredictionHead(config.dim, config.predictor_hidden, config.dim)
        self.average = copy.deepcopy(nn.Sequential(encoder, self.head)).requires_grad_(False)
        self.criterion = losses.NegativeCosineSimilarity()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.average(second), self.average(first)
        p = [self.predictor(self.head(self.encoder(view))) for view in (first, second)]
        loss: Tensor = (self.criterion(p[0], targets[0]) + self.criterion(p[1], targets[1])) / 2
        return loss

    def after_step(self) -> None:
        utils.update_momentum(nn.Sequential(self.encoder, self.head), self.average, m=self.momentum)


class _Sizes:
    """What `Contrastive` reads of a method that has no temperature; its head and loss are replaced."""

    def __init__(self, config: Any) -> None:
        self.hidden, self.dim, self.tau = config.hidden, config.dim, 0.5


MODELS: dict[str, type[nn.Module]] = {
    "simclr": Contrastive,
    "mocov2": MoCo,
    "byol": BYOL,
    "vicreg": VICReg,
    "barlow": Barlow,
    "nnclr": NNCLR,
}
