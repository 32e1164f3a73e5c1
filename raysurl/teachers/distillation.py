"""What methods that distil a frozen teacher without labels share: views, networks, and a contrastive term beside.

The columns of GenURL's Table IV are settings: KD is the default, KD+SSL is `ssl_weight=1`, SSL alone a method without
a teacher. As there, the student is its backbone with an MLP behind it, and the backbone is what is evaluated.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raysurl import distributed
from raysurl import functional as fn
from raysurl.errors import InputError
from raysurl.method import (
    Batch,
    Build,
    FrozenTeacher,
    Method,
    MethodConfig,
    Moment,
    Output,
    Snapshot,
    TeacherKind,
    detached,
)
from raysurl.nets.heads import mlp


class DistilledConfig(MethodConfig):
    couples_batch: ClassVar[bool] = True

    neck: bool = True  # an MLP behind the backbone; False: the loss sees the backbone's features
    hidden: int = Field(2048, ge=1)
    dim: int = Field(128, ge=1)
    ssl_weight: float = Field(0.0, ge=0)  # of InfoNCE between two views of the student
    ssl_tau: float = Field(0.2, gt=0)

    def views(self) -> dict[str, str]:
        return {"view": "mocov2"} | ({"view_2": "view"} if self.ssl_weight else {})

    def learns_from(self) -> TeacherKind:
        return "any"


class Distilled(Method):
    """Base: the student's h and the teacher's t of one view go to `distil`; a second view serves the SSL term."""

    Config: ClassVar[type[MethodConfig]] = DistilledConfig
    config: DistilledConfig

    def __init__(self, config: DistilledConfig, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.frozen = teacher_of(build)
        width = self.neck_width(self.frozen)
        self.neck: nn.Module = nn.Identity()
        if config.neck:
            self.neck = mlp(build.dim, config.hidden, width, build.make_norm)

    def neck_width(self, frozen: FrozenTeacher) -> int:
        return self.config.dim

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        names = list(self.config.views())
        both = self.neck(self.encoder(torch.cat([batch.views[name] for name in names]))).float()
        h = both.chunk(len(names))
        t = self.frozen.teach(batch, names[0]).views["teacher"]
        out = self.distil(h[0], t, batch, snapshot, progress)
        loss, logs = out.loss, dict(out.logs)
        if self.config.ssl_weight:
            contrast = two_view_info_nce(h[0], h[1], tau=self.config.ssl_tau)
            loss = loss + self.config.ssl_weight * contrast
            logs |= detached(info_nce=contrast)
        logs["health/std"] = fn.embedding_std(F.normalize(h[0], dim=1))
        return Output(loss, logs, out.push)

    def distil(self, h: Tensor, t: Tensor, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        """Loss of the student's h (b, width) under the teacher's t (b, D_T), both fp32."""
        raise NotImplementedError


def teacher_of(build: Build) -> FrozenTeacher:
    """The teacher that the builder hands in; InputError where there is none."""
    if build.teacher is None:
        raise InputError("this method learns from a frozen teacher; name one with teacher.name=")
    return build.teacher


def two_view_info_nce(h1: Tensor, h2: Tensor, *, tau: float) -> Tensor:
    """InfoNCE of rows h1 (b, D) among the other view's rows h2 (B, D) of all ranks, mean of both directions."""
    z = [F.normalize(h, dim=1) for h in (h1, h2)]
    keys = [distributed.gather_with_gradient(x) for x in z]
    fn.check_two_rows(keys[0])
    own = distributed.own_rows(h1)
    return fn.mean_of([F.cross_entropy(fn.products(z[i], keys[1 - i]) / tau, own) for i in (0, 1)])
