"""BYOL (Grill et al. 2020): predict the projection that an EMA network makes of the other view.

L_θ,ξ = ‖q̄_θ(z_θ) − z̄'_ξ‖² = 2 − 2 cos(q_θ(z_θ), z'_ξ), eq. 2     `regression`
L_BYOL = L + L~, the views exchanged, sec. 3.1                     their sum in `forward`
ξ ← τ ξ + (1 − τ) θ, τ = 1 − (1 − τ_base)(cos(πk/K) + 1)/2          `after_step`, `nets.ema.momentum_at`

Defaults of the paper and the authors' code: projector and predictor Linear–BN–ReLU–Linear of 4096 hidden units and
256 outputs, no norm on the output, τ_base = 0.996 (0.99 for 300 epochs and fewer), views of appendix B that differ
in blur and solarization.
Deviation from lightly, whose loss is −½ Σ cos: the paper's is 4 times as large, plus a constant. A recipe of theirs
has the same steps here with a quarter of their learning rate and 4 times their weight decay.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raysurl import functional as fn
from raysurl.method import Batch, Build, Method, MethodConfig, Moment, Output, Progress, Snapshot, detached
from raysurl.nets.ema import MomentumTeacher, momentum_at
from raysurl.nets.heads import mlp


class BYOL(Method):
    class Config(MethodConfig):
        hidden: int = Field(4096, ge=1)
        predictor_hidden: int = Field(4096, ge=1)
        dim: int = Field(256, ge=1)
        momentum: float = Field(0.996, ge=0, le=1)
        momentum_schedule: Literal["constant", "cosine"] = "cosine"

        def views(self) -> dict[str, str]:
            return {"view_1": "byol_1", "view_2": "byol_2"}

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.projector = mlp(build.dim, config.hidden, config.dim, build.make_norm)
        self.predictor = mlp(config.dim, config.predictor_hidden, config.dim, build.make_norm)
        self.teacher = MomentumTeacher(nn.Sequential(self.encoder, self.projector), shuffle=build.shuffle)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        views = batch.views["view_1"], batch.views["view_2"]
        q1, q2 = (self.predictor(self.projector(self.encoder(x))) for x in views)
        t1, t2 = (self.teacher(x, progress) for x in views)
        loss = regression(q1, t2) + regression(q2, t1)
        std = fn.embedding_std(F.normalize(q1.float(), dim=1))
        return Output(loss, detached(regression=loss) | {"health/std": std})

    def schedule(self, progress: Progress) -> dict[str, float]:
        return {"momentum": momentum_at(self.config.momentum, self.config.momentum_schedule, progress)}

    def after_step(self, progress: Moment) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        self.teacher.follow(student, self.scheduled(progress)["momentum"])


def regression(prediction: Tensor, target: Tensor) -> Tensor:
    """Eq. 2: squared distance of the unit rows of both (b, D), mean over rows; 0 … 4."""
    return 2 - 2 * fn.mean_cosine(prediction, target)
