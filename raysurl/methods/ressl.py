"""ReSSL: relational self-supervised learning (Zheng et al., journal version; conference version by recipe).

p¹ = softmax(z¹·Q/τ_s), eqs. 2-3      `student` gives z¹: strong view, encoder + projector + predictor
p² = softmax(z²·Q/τ_t), eq. 4         `z_teacher`, weak view, EMA encoder + projector, no gradient
L_relation, eq. 5                     functional.relation_loss (without the entropy of p², which has no gradient)
t ← m·t + (1 − m)·s, eq. 6            `after_step`: the same numbers as the authors' update before the next forward
α L_relation + (1 − α) L_InfoNCE, 7   `forward`; α = min(1, step / warm-up steps), `alpha`; InfoNCE at τ_s, predictor

Choices where the paper is silent: warm-up of 10 epochs in the recipes that use it; two crops are two independent
(strong, weak) pairs, their losses averaged and both keys remembered; the predictor has no teacher copy.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

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

MULTI_CROP_SIZES = (224, 192, 160, 128, 96)


class ReSSL(Method):
    class Config(MethodConfig):
        crops: Literal[1, 2, "multi"] = 1  # views of the student
        hidden: int = Field(4096, ge=1)
        dim: int = Field(256, ge=1)
        head_norm: bool = True  # batch norm in projector and predictor; the conference version has none
        predictor: bool = True  # an MLP behind the student's projector
        queue_size: int = Field(4096, ge=1)
        tau_student: float = Field(0.1, gt=0)
        tau_teacher: float = Field(0.04, gt=0)
        infonce_warmup_epochs: float = Field(0, ge=0)  # in which the InfoNCE term fades out
        momentum: float = Field(0.99, ge=0, le=1)
        momentum_schedule: Literal["constant", "cosine"] = "constant"

        def views(self) -> dict[str, str]:
            if self.crops == "multi":
                students = {f"student_{i}": f"crop_{size}" for i, size in enumerate(MULTI_CROP_SIZES, 1)}
                return {"teacher_1": "weak", **students}
            views = {"student_1": "contrastive", "teacher_1": "weak"}
            return views | ({"student_2": "student_1", "teacher_2": "teacher_1"} if self.crops == 2 else {})

        def remembers(self) -> type[Queue]:
            return Queue

        def memory(self, num_samples: int, seed: int) -> Queue:
            return Queue(self.queue_size, self.dim, seed=seed)

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        make_norm = build.make_norm if config.head_norm else None
        self.config = config
        self.encoder = build.encoder
        self.projector = mlp(build.dim, config.hidden, config.dim, make_norm)
        self.predictor = (
            mlp(config.dim, config.hidden, config.dim, make_norm) if config.predictor else nn.Identity()
        )
        self.teacher = MomentumTeacher(nn.Sequential(self.encoder, self.projector), shuffle=build.shuffle)

    def student(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> unit rows z¹ (b, D)."""
        return F.normalize(self.predictor(self.projector(self.encoder(x))).float(), dim=1)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        c, queue = self.config, snapshot["features"]
        strong = [x for name, x in batch.views.items() if name.startswith("student")]
        weak = [x for name, x in batch.views.items() if name.startswith("teacher")]
        z_teacher = [F.normalize(self.teacher(x, progress).float(), dim=1) for x in weak]
        z_student = [self.student(x) for x in strong]
        keys = z_teacher * (len(z_student) // len(z_teacher))  # multi-crop: one teacher view for all students

        relation = fn.mean_of(
            fn.relation_loss(
                fn.products(z, queue),
                fn.products(k, queue),
                tau_student=c.tau_student,
                tau_teacher=c.tau_teacher,
            )
            for z, k in zip(z_student, keys, strict=True)
        )
        logs = detached(relation=relation)
        loss, alpha = relation, self.scheduled(progress)["alpha"]
        if self.in_phase(progress):
            info_nce = fn.mean_of(
                fn.info_nce(z, k, queue, tau=c.tau_student) for z, k in zip(z_student, keys, strict=True)
            )
            loss = alpha * relation + (1 - alpha) * info_nce
            logs |= detached(info_nce=info_nce)
        logs["health/std"] = fn.embedding_std(z_student[0])
        logs["health/teacher_entropy"] = fn.relative_entropy(
            fn.products(z_teacher[0], queue), tau=c.tau_teacher
        )
        return Output(loss, logs, Push(keys=torch.stack(z_teacher), index=batch.index))

    def alpha(self, progress: Progress) -> float:
        """Weight of the relation loss, eq. 7: 0 -> 1 over the InfoNCE warm-up."""
        warmup = self.config.infonce_warmup_epochs * progress.steps_per_epoch
        return min(1.0, progress.step / warmup) if warmup else 1.0

    def schedule(self, progress: Progress) -> dict[str, float]:
        momentum = momentum_at(self.config.momentum, self.config.momentum_schedule, progress)
        return {"momentum": momentum, "alpha": self.alpha(progress)}

    def phase(self, progress: Progress) -> bool:
        """Whether InfoNCE has a part in the loss."""
        return self.alpha(progress) < 1

    def after_step(self, progress: Moment) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        self.teacher.follow(student, self.scheduled(progress)["momentum"])
