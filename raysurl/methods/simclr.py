"""SimCLR (Chen, Kornblith, Norouzi, Hinton 2020): contrast of all 2B views of a batch.

ℓ(i, j) = −log exp(s_ij/τ) / Σ_{k≠i} exp(s_ik/τ), eq. 1       `nt_xent`, s cosines, k over all 2B views
L = mean of ℓ over both orders of all positive pairs         the same

Defaults of the paper and the authors' code for ImageNet: both views pass the networks as one batch; projection
head of 2048 hidden units and 128 outputs with batch norm behind both layers; τ = 0.1 (their best at batch 4096;
0.5 on CIFAR-10, appendix B.9); their LARS settings belong to the recipe.
Deviations: the output norm keeps a shift, which theirs has not; the default views are MoCo v2's, whose colour
jitter has half the strength of theirs (which they too halve on CIFAR-10).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raysurl import distributed
from raysurl import functional as fn
from raysurl.method import Batch, Build, Method, MethodConfig, Moment, Output, Snapshot, detached
from raysurl.nets.heads import mlp


class SimCLR(Method):
    class Config(MethodConfig):
        couples_batch: ClassVar[bool] = True

        hidden: int = Field(2048, ge=1)
        dim: int = Field(128, ge=1)
        tau: float = Field(0.1, gt=0)

        def views(self) -> dict[str, str]:
            return {"view_1": "contrastive", "view_2": "view_1"}

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.projector = mlp(build.dim, config.hidden, config.dim, build.make_norm, output_norm="affine")

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        both = torch.cat([batch.views["view_1"], batch.views["view_2"]])
        z1, z2 = F.normalize(self.projector(self.encoder(both)).float(), dim=1).chunk(2)
        loss = nt_xent(z1, z2, tau=self.config.tau)
        return Output(loss, detached(nt_xent=loss) | {"health/std": fn.embedding_std(z1)})


def nt_xent(z1: Tensor, z2: Tensor, *, tau: float) -> Tensor:
    """Eq. 1 for unit rows z1, z2 (b, D) of this rank, among the 2B views of all ranks; mean over the rank's 2b views.

    Raises InputError where the global batch has one sample, and so no negative.
    """
    keys = [distributed.gather_with_gradient(z) for z in (z1, z2)]
    fn.check_two_rows(keys[0])
    total = len(keys[0])
    own = distributed.own_rows(z1)
    own = torch.cat([own, total + own])  # where each row of this rank stands among the 2B
    with fn.full_precision(z1):
        logits = torch.cat([z1, z2]) @ torch.cat(keys).T / tau
    logits = logits.scatter(1, own[:, None], -torch.inf)
    return F.cross_entropy(logits, (own + total) % (2 * total))
