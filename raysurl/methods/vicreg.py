"""VICReg (Bardes, Ponce, LeCun 2022): invariance, variance and covariance of two views' embeddings.

v(Z) = 1/d Σ_j max(0, 1 − √(Var(z^j) + ε)), eqs. 1-2                        functional.variance_hinge
c(Z) = 1/d Σ_{i≠j} [C(Z)]²_ij, C the covariance of the batch, eqs. 3-4      `covariance`
s(Z, Z') = mean squared difference, eq. 5                                  F.mse_loss
ℓ = λ s + μ (v(Z) + v(Z'))/2 + ν (c(Z) + c(Z')), eq. 6                      `forward`

The batch is that of all ranks. Defaults of the paper and the authors' code: λ = μ = 25, ν = 1, ε = 1e-4, expander of
three layers of 8192, BYOL's views (theirs are the same for both views: blur half, solarize a tenth of the time).
The equations are those of the authors' code, where they differ from the paper's: s is a mean over dimensions too
(the paper's eq. 5 sums them), and v is the mean of both views (the paper's eq. 6 adds them).
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


class VICReg(Method):
    class Config(MethodConfig):
        couples_batch: ClassVar[bool] = True

        hidden: int = Field(8192, ge=1)
        dim: int = Field(8192, ge=1)
        invariance: float = Field(25.0, ge=0)  # λ
        variance: float = Field(25.0, ge=0)  # μ
        covariance: float = Field(1.0, ge=0)  # ν

        def views(self) -> dict[str, str]:
            return {"view_1": "byol_1", "view_2": "byol_2"}

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.projector = mlp(build.dim, config.hidden, config.dim, build.make_norm, layers=3)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        z1, z2 = (
            distributed.gather_with_gradient(self.projector(self.encoder(batch.views[name])).float())
            for name in ("view_1", "view_2")
        )
        s = F.mse_loss(z1, z2)
        v = (fn.variance_hinge(z1) + fn.variance_hinge(z2)) / 2
        c = covariance(z1) + covariance(z2)
        loss = self.config.invariance * s + self.config.variance * v + self.config.covariance * c
        logs = detached(invariance=s, variance=v, covariance=c)
        return Output(loss, logs | {"health/std": fn.embedding_std(F.normalize(z1.detach(), dim=1))})


def covariance(z: Tensor) -> Tensor:
    """Eqs. 3-4 for embeddings (B, D) of the global batch."""
    fn.check_two_rows(z)
    with fn.full_precision(z):
        centred = z.float() - z.float().mean(dim=0)
        return fn.off_diagonal_squares(centred.T @ centred / (len(z) - 1)) / z.shape[1]
