"""Maths that two or more methods share. Softmax and log-softmax are taken in fp32, whatever the input."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def relation_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, tau_student: float, tau_teacher: float
) -> Tensor:
    """Cross entropy of the student's relation distribution under the teacher's, mean over rows.

    ReSSL eq. 5 without the teacher's entropy, which has no gradient. Both logits are cosines (B, K) to the
    same K memory entries, not yet divided by a temperature; no gradient flows into the teacher's.
    """
    target = F.softmax(teacher_logits.detach().float() / tau_teacher, dim=1)
    return -(target * F.log_softmax(student_logits.float() / tau_student, dim=1)).sum(dim=1).mean()


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, *, tau: float) -> Tensor:
    """InfoNCE (ReSSL eq. 1, MoCo): query (B, D) against its key (B, D) and negatives (K, D), mean over B."""
    positive = (query.float() * key.float()).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, query.float() @ negatives.float().T], dim=1) / tau
    return -F.log_softmax(logits, dim=1)[:, 0].mean()


def relative_entropy(logits: Tensor, *, tau: float) -> Tensor:
    """Mean entropy of softmax(logits / tau) over rows (B, K), as a share of log K: 1 is uniform."""
    log_p = F.log_softmax(logits.detach().float() / tau, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean() / math.log(max(logits.shape[1], 2))


def embedding_std(z: Tensor) -> Tensor:
    """Mean standard deviation of unit rows z (B, D) times √D: 1 is uniform on the sphere, 0 is collapse."""
    return z.detach().float().std(dim=0, correction=0).mean() * math.sqrt(z.shape[1])


def mean_of(losses: Iterable[Tensor]) -> Tensor:
    """Mean of scalar losses."""
    return torch.stack(list(losses)).mean()
