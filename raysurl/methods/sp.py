"""SP (Tung and Mori, ICCV 2019): samples alike to the teacher are alike to the student.

G̃ = Q Qᵀ of the batch's features, each row divided by its length     `similarities`
L = ‖G̃_T − G̃_S‖²_F / B²                                              `distil`, times γ = 3000

Relations need no common width. Deviation: Q are the rows that the student's MLP and the teacher give, where the
paper takes flattened activation maps.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raysurl import distributed
from raysurl import functional as fn
from raysurl.method import Batch, Moment, Output, Snapshot, detached
from raysurl.teachers.distillation import Distilled, DistilledConfig


class SP(Distilled):
    class Config(DistilledConfig):
        kd_weight: float = Field(3000.0, gt=0)  # of the distillation loss

    config: Config

    def distil(self, h: Tensor, t: Tensor, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        student, teacher = distributed.gather_with_gradient(h), distributed.gather(t)
        fn.check_two_rows(student)
        difference = (similarities(teacher) - similarities(student)).square().mean()
        return Output(self.config.kd_weight * difference, detached(similarity=difference))


def similarities(x: Tensor) -> Tensor:
    """(B, D) -> G̃ (B, B): rows of products, each of length 1."""
    return F.normalize(fn.products(x, x), dim=1)
