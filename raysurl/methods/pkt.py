"""PKT (Passalis and Tefas, ECCV 2018): the student's neighbour probabilities follow the teacher's.

K(a, b) = ½ (cos(a, b) + 1)                               `probabilities`
p_{j|i} = K(x_i, x_j) / Σ_k K(x_i, x_k)                   the same
L = 1/B² Σ_i Σ_j p_{j|i} log(p_{j|i} / q_{j|i})           `divergence`; p the teacher's, q the student's

As in the code of the authors and of RepDistiller, whose weight of 30,000 is the default: a row counts among its own
neighbours, and the mean is over all B² pairs, so that the weight of a row falls as 1/B (theirs is for batches of 64).
Deviation from the paper's eqs. 3-5, which leave out a row with itself and sum. Relations need no common width.
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

EPS = 1e-7  # below every probability: that of opposite rows is 0


class PKT(Distilled):
    class Config(DistilledConfig):
        kd_weight: float = Field(30_000.0, gt=0)  # of the distillation loss

    config: Config

    def distil(self, h: Tensor, t: Tensor, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        student, teacher = distributed.gather_with_gradient(h), distributed.gather(t)
        fn.check_two_rows(student)
        divergence = neighbour_divergence(student, teacher)
        return Output(self.config.kd_weight * divergence, detached(divergence=divergence))


def neighbour_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of the neighbour probabilities of rows (B, D_S) from those of (B, D_T), mean over all pairs of rows."""
    p, q = probabilities(teacher), probabilities(student)
    return (p * torch.log((p + EPS) / (q + EPS))).mean()


def probabilities(x: Tensor) -> Tensor:
    """(B, D) -> p (B, B) with rows of sum 1."""
    z = F.normalize(x, dim=1)
    kernel = ((fn.products(z, z) + 1) / 2).clamp(min=0)
    return kernel / kernel.sum(dim=1, keepdim=True)
