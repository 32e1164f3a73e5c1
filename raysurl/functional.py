"""Maths that two or more methods share. Softmax and log-softmax are taken in fp32, whatever the input."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl.errors import InputError
from raysurl.similarities import log_student_kernel as log_student_kernel
from raysurl.similarities import log_student_of_rows as log_student_of_rows
from raysurl.similarities import similarity_loss as similarity_loss
from raysurl.spectra import rankme as rankme

NARROW = 1024  # widest rows whose distances are taken in fp64
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
    logits = torch.cat([positive, products(query, negatives)], dim=1) / tau
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
    to_negatives = products(queries, negatives) / tau  # (H, B, K)
    if negatives_mask is not None:
        to_negatives = to_negatives.masked_fill(negatives_mask, _LEFT_OUT)
    log_negatives = torch.logsumexp(to_negatives, dim=2)  # shared by all keys
    with full_precision(queries):
        to_key = torch.einsum("hbd,jbd->jhb", queries, key.float()) / tau
    return (torch.logaddexp(to_key, log_negatives) - same_label * to_key).mean()


def distance_correlation(
    x: Tensor, y: Tensor, *, sqrt: bool = False, unbiased: bool = False, clamp: float | None = None
) -> Tensor:
    """Distance correlation of paired rows x (B, …) and y (B, …), a scalar (MV-MR eqs. 2-3; Székely et al. 2007).

    dCov² / √(dVar dVar) of doubly centred distances, in [0, 1]: the paper's form, a squared distance correlation.
    `sqrt` takes its root and `clamp` is a lower bound of squared distances, the diagonal included: the authors'
    code is sqrt=True, clamp=1e-4. `unbiased` is the U-statistic of Székely and Rizzo (2013), near 0 and of either
    sign for independent rows. Differentiable everywhere: a pair at distance zero has no gradient, and a batch of
    equal rows gives 0. Without `clamp` the value does not depend on the scale of x or y. Takes O(B²) memory besides
    the rows, whatever their width; fp32 at least (keep PyTorch's matrix products at their highest precision).
    Raises InputError for different numbers of rows, fewer than two (four if unbiased), or sqrt of a U-statistic.
    """
    if x.shape[:1] != y.shape[:1]:
        raise InputError(
            f"distance correlation needs as many rows of x as of y, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    a, b = (centred_distances(rows, unbiased=unbiased, clamp=clamp) for rows in (x, y))
    if sqrt and unbiased:
        raise InputError("an unbiased distance correlation may be negative and has no root: use sqrt=False")
    return correlation_of_distances(a, b, sqrt=sqrt)


def centred_distances(
    x: Tensor | Iterable[Tensor], *, unbiased: bool = False, clamp: float | None = None
) -> Tensor:
    """Doubly centred Euclidean distances (B, B) of the rows of x (B, …), A of MV-MR eq. 3; U-centred if `unbiased`.

    x may also come as blocks of columns (B, d), of which only one is held at a time. Unless clamped, distances are
    divided by the largest one to the mean, which no distance correlation can see: products of four tiny distances would
    leave the range of fp32. Raises InputError for fewer than two rows, four if `unbiased`.
    """
    d = _distances([x] if isinstance(x, Tensor) else x, clamp, least=4 if unbiased else 2)
    if not unbiased:
        centred = d - d.mean(dim=0) - d.mean(dim=1, keepdim=True) + d.mean()
    else:
        n, diagonal = len(d), torch.eye(len(d), dtype=torch.bool, device=d.device)
        d = d.masked_fill(diagonal, 0)
        rows = d.sum(dim=1) / (n - 2)
        centred = (d - rows - rows[:, None] + d.sum() / ((n - 1) * (n - 2))).masked_fill(diagonal, 0)
    largest, left = (torch.linalg.vector_norm(values.detach()) for values in (d, centred))
    all_equal = left <= 8 * torch.finfo(d.dtype).eps * largest  # what is left is rounding
    return centred.masked_fill(all_equal, 0)


def correlation_of_distances(a: Tensor, b: Tensor, *, sqrt: bool = False) -> Tensor:
    """dCov²/√(dVar dVar), MV-MR eq. 2, of centred distances a and b (B, B): their cosine; 0 where one is zero."""
    norm = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    r = (a * b).sum() / norm.masked_fill(norm == 0, 1)  # comparisons that let a NaN through
    if not sqrt:
        return r
    vanishes = r <= 0
    return r.masked_fill(vanishes, 1).sqrt().masked_fill(vanishes, 0)


def _distances(blocks: Iterable[Tensor], clamp: float | None, *, least: int) -> Tensor:
    """Distances (B, B) of rows that come as blocks of columns, by matrix products of centred columns.

    Centring keeps the rounding of the products small. Narrow rows are multiplied in fp64: close pairs lose digits in
    the product, and there it costs nothing. A squared distance below the rounding of the input or of the products
    counts as zero and has no gradient.
    """
    for i, x in enumerate(blocks):
        if x.dim() < 1 or len(x) < least or not x.numel():
            raise InputError(
                f"distance correlation needs at least {least} rows, got a batch of {tuple(x.shape)}"
            )
        x = x.reshape(len(x), -1)
        if i == 0:
            rounding = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
            out_type = torch.promote_types(x.dtype, torch.float32)
            work_type = torch.float64 if x.shape[1] <= NARROW else out_type
            gram = given = torch.zeros((), dtype=work_type, device=x.device)
        x = x.to(work_type)
        given = given + x.detach().square().sum(dim=1)
        x = x - x.mean(dim=0)
        with full_precision(x):
            gram = gram + x @ x.T
    if clamp is None:
        largest = gram.detach().diagonal().amax()
        scale = largest.masked_fill(largest == 0, 1)
        gram, given = gram / scale, given / scale
    squares = gram.diagonal()
    squared = squares[:, None] + squares - 2 * gram
    resolved = 8 * torch.finfo(work_type).eps * (squares[:, None] + squares).detach()
    resolved = torch.maximum(resolved, rounding**2 / 2 * (given[:, None] + given))
    zero = (squared <= resolved) | torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    if clamp is not None:
        return squared.masked_fill(zero, 0).clamp_min(clamp).sqrt().to(out_type)
    return squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0).to(out_type)


def relative_entropy(logits: Tensor, *, tau: float) -> Tensor:
    """Mean entropy of softmax(logits / tau) over rows (B, K), as a share of log K: 1 is uniform."""
    log_p = F.log_softmax(logits.detach().float() / tau, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean() / math.log(max(logits.shape[1], 2))


def mean_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Mean over rows of the cosine between x (B, D) and y (B, D), in fp32."""
    return F.cosine_similarity(x.float(), y.float(), dim=1).mean()


def variance_hinge(z: Tensor, *, margin: float = 1.0, eps: float = 1e-4) -> Tensor:
    """mean_j max(0, margin − √(Var(z_j) + eps)) over dimensions of z (B, D), unbiased variance.

    VICReg eqs. 1-2; MV-MR eqs. 5-6.

    Raises InputError for one row.
    """
    check_two_rows(z)
    return F.relu(margin - torch.sqrt(z.float().var(dim=0) + eps)).mean()


def off_diagonal_squares(matrix: Tensor) -> Tensor:
    """Sum of squares of a square matrix (D, D) without its diagonal."""
    return (matrix - torch.diag(matrix.diagonal())).square().sum()


def check_two_rows(z: Tensor) -> None:
    """Raises InputError unless z (B, D) has two rows: one sample has neither a negative nor a variance."""
    if len(z) < 2:
        raise InputError(f"a loss that couples the batch needs at least two samples, got {len(z)}")


def products(a: Tensor, b: Tensor) -> Tensor:
    """Dot products (…, n, m) of rows a (…, n, D) and b (m, D), in fp32 whatever train.precision says."""
    with full_precision(a):
        return a.float() @ b.float().T


def full_precision(x: Tensor) -> torch.autocast:
    """Context in which matrix products of x's device stay in fp32, whatever train.precision says."""
    return torch.autocast(x.device.type, enabled=False)


def embedding_std(z: Tensor) -> Tensor:
    """Mean standard deviation of unit rows z (B, D) times √D: 1 is uniform on the sphere, 0 is collapse."""
    return z.detach().float().std(dim=0, correction=0).mean() * math.sqrt(z.shape[1])


def mean_of(losses: Iterable[Tensor]) -> Tensor:
    """Mean of scalar losses."""
    return torch.stack(list(losses)).mean()


def evenly_spaced(rows: Tensor, limit: int) -> Tensor:
    """At most `limit` of the rows (N, D), evenly spaced over the order: the same ones each time."""
    if len(rows) <= limit:
        return rows
    return rows[torch.arange(limit, device=rows.device) * len(rows) // limit]
