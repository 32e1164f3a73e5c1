"""RankMe (Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
Representations by Their Rank", eqs. 1-2): how many dimensions the features really use. No labels needed.

RankMe(Z) = exp(−Σ p_k log p_k), p_k = σ_k/‖σ‖₁ + ε, with the singular values σ of Z (N, D), not centred. The
paper takes 25,600 samples; here at most SAMPLES, evenly spaced, which is enough for D up to about 1,000 and
underestimates beyond.
"""

from __future__ import annotations

from collections.abc import Iterator

from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features
from raysurl.functional import evenly_spaced
from raysurl.recipe import Evaluation
from raysurl.spectra import rankme

NEEDS: frozenset[str] = frozenset()
OF_PIXELS = False
SAMPLES = 4096


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """RankMe, in [1, min(N, D)], and its share of min(N, D)."""
    rows = evenly_spaced(features.train, SAMPLES)
    rank = rankme(rows)
    yield "health/rankme", rank
    yield "health/rank_share", rank / min(rows.shape)


def names(settings: Evaluation, division: Division) -> list[str]:
    return ["health/rankme", "health/rank_share"]
