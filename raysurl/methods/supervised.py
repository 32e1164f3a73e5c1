"""Supervised training: cross-entropy of a linear layer on the backbone. No method of ours, but the row beside them.

It takes the labels as its teacher, `teacher.name=labels`, so that trainer, views and evaluation are those of the
unsupervised rows. Samples without a label add nothing.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from raysurl import functional as fn
from raysurl.method import (
    Batch,
    Build,
    Method,
    MethodConfig,
    Moment,
    Output,
    Snapshot,
    TeacherKind,
    detached,
)
from raysurl.teachers.distillation import teacher_of


class Supervised(Method):
    class Config(MethodConfig):
        smoothing: float = Field(0.0, ge=0, lt=1)  # of the labels

        def views(self) -> dict[str, str]:
            return {"view": "weak"}

        def learns_from(self) -> TeacherKind:
            return "labels"

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.frozen = teacher_of(build)
        self.classifier = nn.Linear(build.dim, self.frozen.dim)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        z = self.encoder(batch.views["view"])
        t = self.frozen.teach(batch, "view").views["teacher"]  # (b, classes), rows of zeros without a label
        smooth = self.config.smoothing
        target = (1 - smooth) * t + smooth * t.sum(dim=1, keepdim=True) / t.shape[1]
        loss = -(target * F.log_softmax(self.classifier(z).float(), dim=1)).sum(dim=1).mean()
        logs = detached(cross_entropy=loss)
        logs["health/std"] = fn.embedding_std(F.normalize(z.float(), dim=1))
        return Output(loss, logs, None)
