"""SSKD (Xu, Liu, Li, Loy, ECCV 2020): similarities of transformed to plain images follow the teacher's.

x̃ the image turned by 90°, 180° and 270°, x as it is         `turned`, four views with a crop and a colour each
A_ij = cos(z̃_i, z_j), i over 3B turned, j over B plain rows   `forward`
B = softmax_j(A_ij / τ)                                       `losses` in `forward`, of student and teacher
L_SS = −τ² Σ_ij B^T_ij log B^S_ij, mean over chosen rows       `transfer` in `forward`; the rows that `selected` gives:
                                                              where the teacher finds its own image, and besides the
                                                              share k of the others whose own image it ranks best
L = λ_SS L_SS + λ_C L_C                                       `forward`; L_C the InfoNCE of A^S/τ_C whose positive is
                                                              the row's own image

Defaults of the authors' code: τ = 0.5, λ_SS = 10, k = 0.75. Without labels there are no class logits, so L_CE, L_KD
and L_T fall away; L_C is the "InfoNCE" of GenURL's Table IV. Deviations: the teacher is self-supervised and its
embeddings are compared as they are, where the paper first trains a head on a supervised teacher; of several
transformations the paper's default, rotation, alone; an image is turned after its crop and flip, where theirs turn it
before; the views are MoCo v2's, where theirs are crops of a padded image and flips, without colour; of rows with equal
ranks the first are taken (`by_rank`), where theirs are left to a sort that keeps no order, which differs between
machines. The teacher must see the views (teacher.view=same).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raysurl import distributed
from raysurl import functional as fn
from raysurl.errors import InputError
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
from raysurl.nets.heads import mlp
from raysurl.teachers.distillation import teacher_of

VIEWS = ("view", "turned_1", "turned_2", "turned_3")  # the plain image, and one, two and three quarter turns


class SSKD(Method):
    class Config(MethodConfig):
        couples_batch: ClassVar[bool] = True

        hidden: int = Field(2048, ge=1)
        dim: int = Field(128, ge=1)
        tau: float = Field(0.5, gt=0)  # temperature of similarities
        kd_weight: float = Field(10.0, ge=0)  # of the distillation loss
        transferred: float = Field(0.75, ge=0, le=1)  # share of the teacher's wrong rows
        ssl_weight: float = Field(1.0, ge=0)  # of the similarities of transformed images
        ssl_tau: float = Field(0.2, gt=0)

        def views(self) -> dict[str, str]:
            return dict.fromkeys(VIEWS, "view") | {"view": "mocov2"}

        def learns_from(self) -> TeacherKind:
            return "network"

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.frozen = teacher_of(build)
        self.projector = mlp(build.dim, config.hidden, config.dim, build.make_norm)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        c, images = self.config, turned([batch.views[name] for name in VIEWS])
        z = F.normalize(self.projector(self.encoder(images)).float(), dim=1)
        student = distributed.gather_with_gradient(by_sample(z))  # (B, 4, D)
        teacher = distributed.gather(by_sample(F.normalize(self.frozen.embed(images), dim=1)))
        fn.check_two_rows(student)

        a_student, a_teacher = cosines(student), cosines(teacher)
        own = torch.arange(len(student), device=z.device).repeat_interleave(len(VIEWS) - 1)
        rows = selected(a_teacher, own, c.transferred)
        losses = -(F.softmax(a_teacher / c.tau, dim=1) * F.log_softmax(a_student / c.tau, dim=1)).sum(dim=1)
        transfer = c.tau**2 * (losses * rows).sum() / rows.sum().clamp(min=1)
        contrast = F.cross_entropy(a_student / c.ssl_tau, own)
        logs = detached(transfer=transfer, info_nce=contrast, transferred=rows.float().mean())
        logs["health/std"] = fn.embedding_std(z[: len(batch.index)])
        return Output(c.kd_weight * transfer + c.ssl_weight * contrast, logs)


def turned(views: list[Tensor]) -> Tensor:
    """Four views (b, C, S, S) of square images -> (4·b, C, S, S): the first as it is, the k-th by k quarter turns."""
    if views[0].dim() != 4:
        raise InputError("sskd turns images, and the data are vectors; use another method")
    return torch.cat([torch.rot90(x, k, dims=(2, 3)) for k, x in enumerate(views)])


def by_sample(z: Tensor) -> Tensor:
    """(4·b, D) -> (b, 4, D)."""
    return z.view(len(VIEWS), -1, z.shape[1]).transpose(0, 1)


def cosines(z: Tensor) -> Tensor:
    """Unit rows (B, 4, D) -> A (3·B, B), turned rows, three of each sample, against plain ones."""
    return fn.products(z[:, 1:].flatten(0, 1), z[:, 0])


def selected(a: Tensor, own: Tensor, share: float) -> Tensor:
    """(R,) bool of A (R, B): rows whose own image is nearest, and the best `share` of the others by its rank."""
    mine = a.gather(1, own[:, None])
    rank = (a > mine).sum(dim=1)  # 0: correct
    wrong = rank > 0
    kept = (share * wrong.sum().double()).floor() + (~wrong).sum()
    chosen = torch.arange(len(rank), device=rank.device) < kept  # in the order of ranks
    return torch.zeros_like(wrong).scatter(0, by_rank(rank), chosen)


def by_rank(rank: Tensor) -> Tensor:
    """Rows (R,) int64 in ascending order of their rank (R,), equal ones as they stand."""
    return torch.argsort(rank, stable=True)
