"""Maths that two or more methods share. Softmax and log-softmax are taken in fp32, whatever the input."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

_LEFT_OUT = -1e4  # a logit that adds nothing, and keeps gradients defined where every entry is left out


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


def relative_contrastive_loss(
    queries: Tensor,
    key: Tensor,
    negatives: Tensor,
    same_label: Tensor,
    *,
    tau: float,
    negatives_mask: Tensor | None = None,
) -> Tensor:
    """Relative contrastive loss (RCL eqs. 2-3) with α = 1/H, mean over keys and batch.

    `queries` (H, B, D), one row per criterion's predictor; `key` (J, B, D) and `same_label` (J, H, B) bool: does
    key j have the query's label under criterion h; or (B, D) and (H, B) for one key. `negatives` (K, D);
    `negatives_mask` (B, K) bool leaves entries out where True. Unit rows. Where labels differ the numerator of
    eq. 3 is 1, so the term is the log-denominator alone and the key is pushed away (eq. 4).
    """
    if key.dim() == 2:
        key, same_label = key[None], same_label[None]
    queries = queries.float()
    to_negatives = queries @ negatives.float().T / tau  # (H, B, K)
    if negatives_mask is not None:
        to_negatives = to_negatives.masked_fill(negatives_mask, _LEFT_OUT)
    log_negatives = torch.logsumexp(to_negatives, dim=2)  # shared by all keys
    to_key = torch.einsum("hbd,jbd->jhb", queries, key.float()) / tau
    return (torch.logaddexp(to_key, log_negatives) - same_label * to_key).mean()


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
