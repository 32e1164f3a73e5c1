"""Barlow Twins (Zbontar et al. 2021): the cross-correlation of two views' embeddings shall be the identity.

C_ij = Σ_b z¹_bi z²_bj / (√Σ_b(z¹_bi)² √Σ_b(z²_bj)²), eq. 2, z centred over the batch     `cross_correlation`
L = Σ_i (1 − C_ii)² + λ Σ_i Σ_{j≠i} C_ij², eq. 1                                        invariance + λ · redundancy

The batch is that of all ranks. Defaults of the paper and the authors' code: projector of three layers of 8192 with
batch norm on the hidden ones, λ = 0.0051, BYOL's views; a variance is floored by 1e-5, as in their batch norm.
Deviations: Linear layers keep their bias, which has no effect (a batch norm follows each, the last in C).
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raysurl import distributed
from raysurl import functional as fn
from raysurl.method import Batch, Build, Method, MethodConfig, Moment, Output, Snapshot, detached
from raysurl.nets.heads import mlp


class BarlowTwins(Method):
    class Config(MethodConfig):
        couples_batch: ClassVar[bool] = True

        hidden: int = Field(8192, ge=1)
        projector_layers: int = Field(3, ge=2)  # linear layers of the projector
        dim: int = Field(8192, ge=1)
        redundancy: float = Field(0.0051, ge=0)  # λ

        def views(self) -> dict[str, str]:
            return {"view_1": "byol_1", "view_2": "byol_2"}

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        layers = config.projector_layers
        self.projector = mlp(build.dim, config.hidden, config.dim, build.make_norm, layers=layers)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        z1, z2 = (
            distributed.gather_with_gradient(self.projector(self.encoder(batch.views[name])).float())
            for name in ("view_1", "view_2")
        )
        correlation = cross_correlation(z1, z2)
        invariance = (1 - correlation.diagonal()).square().sum()
        redundancy = fn.off_diagonal_squares(correlation)
        loss = invariance + self.config.redundancy * redundancy
        logs = detached(invariance=invariance, redundancy=redundancy)
        return Output(loss, logs | {"health/std": fn.embedding_std(F.normalize(z1.detach(), dim=1))})


def cross_correlation(z1: Tensor, z2: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Eq. 2 for embeddings (B, D) of the global batch -> (D, D); a constant dimension correlates 0 with everything.

    Raises InputError for one sample.
    """
    fn.check_two_rows(z1)
    with fn.full_precision(z1):
        a, b = (F.batch_norm(z.float(), None, None, training=True, eps=eps) for z in (z1, z2))
        return a.T @ b / len(a)
