"""RankMe (Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
Representations by Their Rank", eqs. 1-2): how many dimensions the features really use. No labels needed.

RankMe(Z) = exp(−Σ p_k log p_k), p_k = σ_k/‖σ‖₁ + ε, with the singular values σ of Z (N, D), not centred. The
paper takes 25,600 samples; here at most SAMPLES, evenly spaced, which is enough for D up to about 1,000 and
underestimates beyond.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from raysurl.evaluate.features import Features, evenly_spaced
from raysurl.recipe import Evaluation

NEEDS: frozenset[str] = frozenset()
OF_PIXELS = False
SAMPLES = 4096
EPSILON = 1e-7


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """RankMe, in [1, min(N, D)], and its share of min(N, D)."""
    rows = evenly_spaced(features.train, SAMPLES)
    rank = rankme(rows)
    yield "health/rankme", rank
    yield "health/rank_share", rank / min(rows.shape)


def rankme(rows: Tensor) -> float:
    """RankMe of rows (N, D), in [1, min(N, D)]; 1.0 where all rows are zero."""
    rows = rows.double() if rows.device.type != "mps" else rows.float()
    if rows.shape[0] > 2 * rows.shape[1]:  # R of a QR has the same singular values, and is D × D
        rows = torch.linalg.qr(rows, mode="r").R
    values = torch.linalg.svdvals(rows)
    total = values.sum()
    if not total > 0:
        return 1.0
    p = values / total + EPSILON
    return min(float((-p * p.log()).sum().exp()), float(len(values)))
