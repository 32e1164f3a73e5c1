"""MoCo v3 (Chen, Xie, He 2021), a baseline of RCL's tables: InfoNCE among the keys of a batch.

q = predictor(projector(encoder(v)))              `forward`; k by the EMA of encoder and projector, no gradient
L = 2τ · CE(q·kᵀ/τ, own row), their algorithm 1   `contrast`, over the keys of the whole batch; both directions summed

As in the authors' code: projector of two layers with batch norm behind both, the last without scale and shift; the
predictor's output has no norm; no Linear layer has a bias. They move the EMA at the start of a step, with that step's
momentum and the student of the step before, which is `after_step` with the momentum of the step to come. The heads
are those of their ResNets; of a ViT the patch projection stays as it was initialised (their section 4), unless
encoder.freeze_patch_embed=false.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raysurl import distributed
from raysurl import functional as fn
from raysurl.method import Batch, Build, Method, MethodConfig, Moment, Output, Progress, Snapshot, detached
from raysurl.nets.ema import MomentumTeacher, momentum_at
from raysurl.nets.heads import mlp


class MoCoV3(Method):
    class Config(MethodConfig):
        couples_batch: ClassVar[bool] = True
        freezes_patches: ClassVar[bool] = True

        hidden: int = Field(4096, ge=1)
        dim: int = Field(256, ge=1)
        tau: float = Field(1.0, gt=0)
        momentum: float = Field(0.99, ge=0, le=1)
        momentum_schedule: Literal["constant", "cosine"] = "cosine"

        def views(self) -> dict[str, str]:
            return {"view_1": "byol_1", "view_2": "byol_2"}

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.projector = mlp(
            build.dim, config.hidden, config.dim, build.make_norm, output_norm="plain", bias=False
        )
        self.predictor = mlp(config.dim, config.hidden, config.dim, build.make_norm, bias=False)
        self.teacher = MomentumTeacher(nn.Sequential(self.encoder, self.projector), shuffle=build.shuffle)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        views = batch.views["view_1"], batch.views["view_2"]
        queries = [F.normalize(self.predictor(self.projector(self.encoder(x))).float(), dim=1) for x in views]
        keys = [distributed.gather(F.normalize(self.teacher(x, progress).float(), dim=1)) for x in views]
        loss = self.contrast(queries[0], keys[1]) + self.contrast(queries[1], keys[0])
        return Output(loss, detached(info_nce=loss) | {"health/std": fn.embedding_std(queries[0])})

    def contrast(self, query: Tensor, keys: Tensor) -> Tensor:
        """2τ · cross entropy of queries (b, D) over the global batch's keys (B, D)."""
        own = distributed.own_rows(query)
        return 2 * self.config.tau * F.cross_entropy(fn.products(query, keys) / self.config.tau, own)

    def schedule(self, progress: Progress) -> dict[str, float]:
        coming = replace(progress, step=progress.step + 1)
        return {"momentum": momentum_at(self.config.momentum, self.config.momentum_schedule, coming)}

    def after_step(self, progress: Moment) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        self.teacher.follow(student, self.scheduled(progress)["momentum"])
