"""SEED (Fang et al., ICLR 2021): the student's softmax over similarities to a queue follows the teacher's.

z_T, z_S unit rows; D⁺ = the teacher's queue and the sample's own z_T  `distil`
p_T = softmax_j(z_T·d_j/τ_T), p_S = softmax_j(z_S·d_j/τ_S), j over D⁺   functional.relation_loss, on K + 1 logits
L = −Σ_j p_T log p_S, mean over the batch                               the same

The queue holds the teacher's embeddings, so the student's MLP ends in the teacher's width. Defaults of the paper:
K = 65,536, τ_T = 0.01, τ_S = 0.2, one augmented view for both networks; SGD 0.03 at batch 256 for 200 epochs.
Deviation: the teacher's embedding is its backbone's, without the projection head of its own pre-training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from raysurl import functional as fn
from raysurl.errors import InputError
from raysurl.memory import Queue
from raysurl.method import Batch, FrozenTeacher, Moment, Output, Push, Snapshot, detached
from raysurl.teachers.distillation import Distilled, DistilledConfig


class SEED(Distilled):
    class Config(DistilledConfig):
        queue_size: int = Field(65536, ge=1)
        tau_student: float = Field(0.2, gt=0)
        tau_teacher: float = Field(0.01, gt=0)
        teacher_dim: int | None = Field(None, ge=1)  # None: found from the teacher

        @model_validator(mode="after")
        def _check(self) -> SEED.Config:
            if not self.neck:
                raise ValueError("seed compares student and teacher, whose widths differ: it needs neck=true")
            return self

        def for_teacher(self, dim: Callable[[], int]) -> SEED.Config:
            return self if self.teacher_dim else self.model_copy(update={"teacher_dim": dim()})

        def remembers(self) -> type[Queue]:
            return Queue

        def memory(self, num_samples: int, seed: int) -> Queue:
            assert self.teacher_dim is not None
            return Queue(self.queue_size, self.teacher_dim, seed=seed)

    config: Config

    def neck_width(self, frozen: FrozenTeacher) -> int:
        if self.config.teacher_dim != frozen.dim:
            raise InputError(
                f"method.teacher_dim={self.config.teacher_dim} and the teacher's embeddings have {frozen.dim} values;"
                " leave it out"
            )
        return frozen.dim

    def distil(self, h: Tensor, t: Tensor, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        z_s, z_t = F.normalize(h, dim=1), F.normalize(t, dim=1)
        student, teacher = (
            torch.cat([(z * z_t).sum(dim=1, keepdim=True), fn.products(z, snapshot["features"])], dim=1)
            for z in (z_s, z_t)
        )  # (b, 1 + K)
        c = self.config
        loss = fn.relation_loss(student, teacher, tau_student=c.tau_student, tau_teacher=c.tau_teacher)
        logs = detached(relation=loss, teacher_cosine=student[:, 0].mean())
        return Output(loss, logs, Push(keys=z_t[None], index=batch.index))
