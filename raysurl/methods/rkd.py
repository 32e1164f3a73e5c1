"""RKD (Park, Kim, Lu, Cho, CVPR 2019): distances and angles among the student's rows follow the teacher's.

ψ_D(i, j) = ‖x_i − x_j‖ / μ, μ the mean over pairs of the batch      `distances`
L_D = mean over B² pairs of ℓ(ψ_D of the student, of the teacher)    ℓ = Huber with δ = 1
ψ_A(i, j, k) = cos of the angle at x_j of the triplet                `angles`
L_A = mean over B³ triplets of ℓ(ψ_A of the student, of the teacher)
L = λ_D L_D + λ_A L_A                                                `distil`

Defaults λ_D = 25, λ_A = 50, the authors' metric learning on the pair; rows are not normalised. Relations need no
common width. Means are those of the authors' code: a row with itself is among the pairs and triplets, and adds 0.
A batch of B has B³ angles, so B is limited (`max_triplets`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raysurl import distributed
from raysurl import functional as fn
from raysurl.method import Batch, Moment, Output, Snapshot, detached
from raysurl.teachers.distillation import Distilled, DistilledConfig


class RKD(Distilled):
    class Config(DistilledConfig):
        distance_weight: float = Field(25.0, ge=0)  # of the distances between two rows
        angle_weight: float = Field(50.0, ge=0)  # of the angles among three rows
        max_triplets: int = Field(2**27, ge=8)  # that a step may hold, B³: 0.5 GiB a tensor

        def largest_batch(self) -> int | None:
            return int(self.max_triplets ** (1 / 3) + 1e-9) if self.angle_weight else None

    config: Config

    def distil(self, h: Tensor, t: Tensor, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        student, teacher = distributed.gather_with_gradient(h), distributed.gather(t)
        fn.check_two_rows(student)
        c = self.config
        distance = distance_loss(student, teacher)
        loss, logs = c.distance_weight * distance, detached(distance=distance)
        if c.angle_weight:
            angle = angle_loss(student, teacher)
            loss, logs = loss + c.angle_weight * angle, logs | detached(angle=angle)
        return Output(loss, logs)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L_D of rows (B, D_S) and (B, D_T): mean over all ordered pairs of rows."""
    return F.smooth_l1_loss(distances(student), distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L_A of rows (B, D_S) and (B, D_T): mean over all triplets of rows."""
    return F.smooth_l1_loss(angles(student), angles(teacher))


def distances(x: Tensor) -> Tensor:
    """(B, D) -> ψ_D (B, B); equal rows have distance 0 without gradient."""
    d = _lengths(x)
    mean = d.sum() / (len(x) * (len(x) - 1))
    return d / mean.clamp(min=torch.finfo(d.dtype).tiny)


def angles(x: Tensor) -> Tensor:
    """(B, D) -> ψ_A (B, B, B), entry [j, i, k] the cosine at j between i and k; 0 where i or k equals j.

    (x_i − x_j)·(x_k − x_j) = G_ik − G_ij − G_jk + G_jj, so that no differences (B, B, D) are held.
    """
    d, g = _lengths(x), _gram(x)
    at = g[None] - g[:, :, None] - g[:, None, :] + g.diagonal()[:, None, None]
    inverse = d.masked_fill(d == 0, torch.inf).reciprocal()
    return at * inverse[:, :, None] * inverse[:, None, :]


def _off_diagonal(matrix: Tensor) -> Tensor:
    """(B, B) -> its B(B − 1) entries off the diagonal, row by row: from one diagonal entry to the next lie B others."""
    b = len(matrix)
    return matrix.flatten()[1:].view(b - 1, b + 1)[:, :-1].reshape(-1)


def _lengths(x: Tensor) -> Tensor:
    """Distances (B, B); what is lost in the rounding of the products counts as 0."""
    g = _gram(x)
    squares = g.diagonal()
    squared = squares[:, None] + squares - 2 * g
    rounding = 8 * torch.finfo(g.dtype).eps * (squares[:, None] + squares).detach()
    zero = (squared <= rounding) | torch.eye(len(x), dtype=torch.bool, device=x.device)
    return squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def _gram(x: Tensor) -> Tensor:
    """Products (B, B) of rows around their mean, which keeps the rounding of close pairs small."""
    centred = x - x.detach().mean(dim=0)
    return fn.products(centred, centred)
