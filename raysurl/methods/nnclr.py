"""NNCLR (Dwibedi et al. 2021), a baseline of RCL's tables: the positive is the nearest entry of a support set.

L = −log exp(NN(z_i)·p_i⁺/τ) / Σ_k exp(NN(z_i)·p_k⁺/τ), eq. 4   `contrast`, over all predictions, mean of both ways
NN(z), the entry of the queue nearest to z, without gradient    `nearest`

The queue holds projections of view 1. Slots not yet filled are never chosen: until there is one, the positive is z
itself.

Heads of the paper (sec. 4.1): a projector of three layers with batch norm behind all of them, a predictor of two with
batch norm on its hidden layer.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raysurl import distributed
from raysurl import functional as fn
from raysurl.memory import Queue
from raysurl.method import (
    Batch,
    Build,
    Method,
    MethodConfig,
    Moment,
    Output,
    Push,
    Snapshot,
    detached,
)
from raysurl.nets.heads import mlp


class NNCLR(Method):
    class Config(MethodConfig):
        couples_batch: ClassVar[bool] = True

        hidden: int = Field(2048, ge=1)
        predictor_hidden: int = Field(4096, ge=1)
        dim: int = Field(256, ge=1)
        queue_size: int = Field(98304, ge=1)
        tau: float = Field(0.1, gt=0)

        def views(self) -> dict[str, str]:
            return {"view_1": "byol_1", "view_2": "byol_2"}

        def remembers(self) -> type[Queue]:
            return Queue

        def memory(self, num_samples: int, seed: int) -> Queue:
            return Queue(self.queue_size, self.dim, seed=seed)

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.projector = mlp(
            build.dim, config.hidden, config.dim, build.make_norm, layers=3, output_norm="affine"
        )
        self.predictor = mlp(config.dim, config.predictor_hidden, config.dim, build.make_norm)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        projections = [self.projector(self.encoder(batch.views[name])) for name in ("view_1", "view_2")]
        z = [F.normalize(p.float(), dim=1) for p in projections]
        predictions = [F.normalize(self.predictor(p).float(), dim=1) for p in projections]
        positives = [nearest(x.detach(), snapshot) for x in z]
        loss = fn.mean_of(
            [self.contrast(positives[0], predictions[1]), self.contrast(positives[1], predictions[0])]
        )
        logs = detached(nearest=loss) | {"health/std": fn.embedding_std(z[0])}
        return Output(loss, logs, Push(keys=z[0].detach()[None], index=batch.index))

    def contrast(self, positives: Tensor, predictions: Tensor) -> Tensor:
        """Eq. 4 for this rank's positives (b, D) over the predictions (B, D) of all ranks."""
        logits = fn.products(positives, distributed.gather_with_gradient(predictions)) / self.config.tau
        own = distributed.own_rows(positives)
        return F.cross_entropy(logits, own)


def nearest(z: Tensor, snapshot: Snapshot) -> Tensor:
    """The nearest filled queue entry of each row (b, D); the row itself while the queue is empty."""
    empty = snapshot["index"] < 0
    found = snapshot["features"][fn.products(z, snapshot["features"]).masked_fill(empty, -2).argmax(dim=1)]
    return torch.where(empty.all(), z, found)
