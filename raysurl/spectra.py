"""How many directions features use, and how evenly: signals of quality that need no labels, of rows (N, D).

All are of eigenvalues or singular values, in double precision where the device has it, and independent of the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

FITTED = slice(10, 50)  # eigenvalues 11 to 50, whose fall is fitted: the first few are no power law
FEWEST = 20  # eigenvalues below which all are fitted
LIDAR_SHARE = 1e-4  # of the mean variance within, by which the scatter within is made invertible


def rankme(rows: Tensor) -> float:
    """RankMe of rows (N, D), in [1, min(N, D)]; 1.0 where all rows are zero (Garrido et al. 2023, eqs. 1-2)."""
    rows = _double(rows)
    if rows.shape[0] > 2 * rows.shape[1]:  # R of a QR has the same singular values, and is D × D
        rows = torch.linalg.qr(rows, mode="r").R
    return _entropy_rank(torch.linalg.svdvals(rows))


def alpha_req(rows: Tensor) -> float:
    """α of rows (N, D) whose covariance has eigenvalues λ_j ∝ j^−α; 0.0 where fewer than two are positive.

    Agrawal et al. 2022, "α-ReQ: Assessing Representation Quality in Self-Supervised Learning by measuring eigenspectrum
    decay": good features have α near 1; larger, few directions hold all variance; smaller, it is spread as in noise.
    Fitted in logarithms, each j weighed by 1/j, as in Stringer et al. 2019.
    """
    rows = _double(rows)
    rows = rows - rows.mean(0)
    values = torch.linalg.svdvals(rows).square()
    values = values[values > values.max() * torch.finfo(values.dtype).eps]
    fitted = values[FITTED] if len(values) >= FEWEST else values
    if len(fitted) < 2:
        return 0.0
    first = 1 + (FITTED.start if len(values) >= FEWEST else 0)
    j = torch.arange(first, first + len(fitted), dtype=values.dtype, device=values.device)
    weight = (1 / j) / (1 / j).sum()
    x, y = j.log(), fitted.log()
    x, y = x - weight @ x, y - weight @ y
    return -float((weight * x) @ y / (weight @ x.square()))


def lidar(views: Tensor) -> float:
    """LiDAR of views (q, N, D): features of q views of each of N samples, q ≥ 2; in [1, min(N − 1, D)].

    Thilak et al. 2024, "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL Architectures", eqs. 1-4: the
    smooth rank of Σ_w^−½ Σ_b Σ_w^−½, where each sample is a class of its own and its views are the class's. Their
    δ = 10⁻⁴, which makes the scatter within invertible, is here a share of its mean variance, so that the scale does
    not matter. 1.0 where all rows are zero.
    """
    views = _double(views)
    q, n, d = views.shape
    means = views.mean(0)
    within = (views - means).reshape(q * n, d)
    scatter = within.T @ within / (n * (q - 1))
    delta = LIDAR_SHARE * float(scatter.diagonal().mean())
    between = (means - means.mean(0)) / max(n - 1, 1) ** 0.5
    if not delta > 0:
        return _entropy_rank(torch.linalg.svdvals(between).square())
    values, vectors = torch.linalg.eigh(scatter)
    whitened = between @ (vectors / (values.clamp(min=0) + delta).sqrt())
    return _entropy_rank(torch.linalg.svdvals(whitened).square())


def _double(rows: Tensor) -> Tensor:
    return rows.double() if rows.device.type != "mps" else rows.float()


def _entropy_rank(values: Tensor) -> float:
    """exp of the entropy of values (K,) as shares of their sum, at most K; 1.0 where all are zero."""
    total = values.sum()
    if not total > 0:
        return 1.0
    p = values / total + 1e-7
    return min(max(float((-p * p.log()).sum().exp()), 1.0), float(len(values)))
