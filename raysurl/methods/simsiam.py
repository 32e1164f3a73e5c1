"""SimSiam (Chen & He 2021): two views, a predictor and a stopped gradient, nothing else.

D(p, z) = −cos(p, z), eq. 1                                     −functional.mean_cosine
L = ½ D(p₁, stopgrad(z₂)) + ½ D(p₂, stopgrad(z₁)), eqs. 2-4     `forward`

Defaults of the paper (sec. 3) and the authors' code: projector of three layers of 2048 with batch norm on all of
them, the last without scale and shift; predictor 2048–512–2048, batch norm on its hidden layer only. On CIFAR-10
the paper's projector has two layers (appendix D): `projector_layers`.
Deviations: the predictor's learning rate follows the run's schedule, where theirs stays constant (68.1 against 67.7
on ImageNet, their table 1): the trainer has one rate for all parameters. Linear layers in front of a batch norm keep
their bias, which has no effect.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field

from raysurl import functional as fn
from raysurl.method import Batch, Build, Method, MethodConfig, Moment, Output, Snapshot, detached
from raysurl.nets.heads import mlp


class SimSiam(Method):
    class Config(MethodConfig):
        hidden: int = Field(2048, ge=1)
        projector_layers: int = Field(3, ge=2)  # linear layers of the projector
        predictor_hidden: int = Field(512, ge=1)
        dim: int = Field(2048, ge=1)

        def views(self) -> dict[str, str]:
            return {"view_1": "mocov2", "view_2": "view_1"}

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        layers = config.projector_layers
        self.projector = mlp(
            build.dim, config.hidden, config.dim, build.make_norm, layers=layers, output_norm="plain"
        )
        # a bias in front of a norm has no effect, so that decay alone would move it
        self.projector[-2].bias.requires_grad_(False)
        self.predictor = mlp(config.dim, config.predictor_hidden, config.dim, build.make_norm)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        z1, z2 = (self.projector(self.encoder(batch.views[name])) for name in ("view_1", "view_2"))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = -(fn.mean_cosine(p1, z2.detach()) + fn.mean_cosine(p2, z1.detach())) / 2
        std = fn.embedding_std(F.normalize(z1.detach().float(), dim=1))
        return Output(loss, detached(negative_cosine=loss) | {"health/std": std})
