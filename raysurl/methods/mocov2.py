"""MoCo v2 (Chen et al. 2020), the baseline of ReSSL's tables: InfoNCE against a queue of EMA keys.

L = −log exp(q·k/τ) / (exp(q·k/τ) + Σ_j exp(q·Q_j/τ))   functional.info_nce; query with gradient, key from the EMA copy

Head Linear–ReLU–Linear without batch norm, τ = 0.2, both views contrastive, shuffle-BN (norm=shuffle), as published.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from raysurl import functional as fn
from raysurl.memory import Queue
from raysurl.method import (
    Batch,
    Build,
    Method,
    MethodConfig,
    Moment,
    Output,
    Progress,
    Push,
    Snapshot,
    detached,
)
from raysurl.nets.ema import MomentumTeacher, momentum_at
from raysurl.nets.heads import mlp


class MoCoV2(Method):
    class Config(MethodConfig):
        hidden: int = Field(2048, ge=1)
        dim: int = Field(128, ge=1)
        head_norm: bool = False
        queue_size: int = Field(4096, ge=1)
        tau: float = Field(0.2, gt=0)
        momentum: float = Field(0.99, ge=0, le=1)
        momentum_schedule: Literal["constant", "cosine"] = "constant"

        def views(self) -> dict[str, str]:
            return {"query": "mocov2", "key": "query"}

        def remembers(self) -> type[Queue]:
            return Queue

        def memory(self, num_samples: int, seed: int) -> Queue:
            return Queue(self.queue_size, self.dim, seed=seed)

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.projector = mlp(
            build.dim, config.hidden, config.dim, build.make_norm if config.head_norm else None
        )
        self.teacher = MomentumTeacher(nn.Sequential(self.encoder, self.projector), shuffle=build.shuffle)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        query = F.normalize(self.projector(self.encoder(batch.views["query"])).float(), dim=1)
        key = F.normalize(self.teacher(batch.views["key"], progress).float(), dim=1)
        loss = fn.info_nce(query, key, snapshot["features"], tau=self.config.tau)
        logs = detached(info_nce=loss) | {"health/std": fn.embedding_std(query)}
        return Output(loss, logs, Push(keys=key[None], index=batch.index))

    def schedule(self, progress: Progress) -> dict[str, float]:
        return {"momentum": momentum_at(self.config.momentum, self.config.momentum_schedule, progress)}

    def after_step(self, progress: Moment) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        self.teacher.follow(student, self.scheduled(progress)["momentum"])
