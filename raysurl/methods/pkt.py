"""PKT (Passalis and Tefas, ECCV 2018): the student's neighbour probabilities follow the teacher's.

K(a, b) = ½ (cos(a, b) + 1)                               `probabilities`
p_{j|i} = K(x_i, x_j) / Σ_{k≠i} K(x_i, x_k), j ≠ i         the same
L = Σ_i Σ_{j≠i} p_{j|i} log(p_{j|i} / q_{j|i})             `divergence`; p the teacher's, q the student's

Deviations: the mean over rows, not their sum; the authors' code averages over all B² pairs, a row with itself
included. Relations need no common width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raysurl import distributed
from raysurl import functional as fn
from raysurl.method import Batch, Moment, Output, Snapshot, detached
from raysurl.teachers.distillation import Distilled, DistilledConfig, others

EPS = 1e-7  # below every probability: that of opposite rows is 0


class PKT(Distilled):
    class Config(DistilledConfig):
        kd_weight: float = Field(1.0, gt=0)

    config: Config

    def distil(self, h: Tensor, t: Tensor, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        student, teacher = distributed.gather_with_gradient(h), distributed.gather(t)
        fn.check_two_rows(student)
        divergence = neighbour_divergence(student, teacher)
        return Output(self.config.kd_weight * divergence, detached(divergence=divergence))


def neighbour_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of the neighbour probabilities of rows (B, D_S) from those of (B, D_T), mean over rows."""
    p, q = probabilities(teacher), probabilities(student)
    return (p * torch.log((p + EPS) / (q + EPS))).sum(dim=1).mean()


def probabilities(x: Tensor) -> Tensor:
    """(B, D) -> p (B, B) with rows of sum 1 and a diagonal of 0."""
    z = F.normalize(x, dim=1)
    kernel = (fn.products(z, z) + 1) / 2 * others(len(x), x.device)
    return kernel.clamp(min=0) / kernel.sum(dim=1, keepdim=True).clamp(min=EPS)
