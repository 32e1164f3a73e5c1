"""Is a representation alive? Cheap signals of collapse and degeneration, and sentences on what they mean.

Signals come from embeddings (`signals`, `alignment`) or from what methods log; `diagnose` reads them by name.
Letters: N samples, D dimensions, K entries of a teacher's distribution.

health/std              mean over dimensions of the standard deviation of unit embeddings, times √D:
                        0 collapsed, 1 uniform on the sphere
health/mean_cosine      mean cosine between different samples: 1 collapsed, about 0 uniform
health/uniformity       log mean exp(−2‖x − y‖²) over pairs of different samples (Wang & Isola 2020, eq. 2):
                        0 collapsed, about −4 uniform
health/alignment        mean ‖x − x⁺‖² between two views of a sample (same, eq. 1): 0 identical, 2 unrelated
health/rankme           effective number of dimensions (RankMe): 1 … min(N, D)
health/rank_share       RankMe as a share of min(N, D)
health/teacher_entropy  entropy of the teacher's distribution as a share of log K: 0 one-hot, 1 flat;
                        logged by methods that have one

health/level{h}_…       of the clusters on level h, see raysurl.hierarchy.signals

`signals` are of the encoder's features. Methods log `health/std` too, of the embeddings that their loss sees;
`combined` keeps both, the latter as `health/training_std`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl import functional
from raysurl.errors import InputError
from raysurl.functional import evenly_spaced, rankme

SIGNALS = tuple(f"health/{name}" for name in ("std", "mean_cosine", "uniformity", "rankme", "rank_share"))
SAMPLES = 2048  # the pairwise signals use at most so many samples, evenly spaced

# Thresholds. Backbone features behind a ReLU are non-negative and score low on `std` in good health too
# (an untrained ResNet about 0.1 to 0.3), so the bounds are far below what trained encoders show.
COLLAPSED_STD = 0.05
COLLAPSED_TRAINING_COSINE = 0.9  # between head outputs of different images; spread² = 1 − mean cosine
LOW_RANK_SHARE = 0.05
LOW_RANK = 3.0
FLAT_ENTROPY = 0.95
ONE_HOT_ENTROPY = 0.01
GAIN = 0.5  # points of kNN accuracy that count as better than a baseline, where no interval says what chance does


def signals(embeddings: Tensor) -> dict[str, float]:
    """Signals `health/…` of embeddings (N, D), one row per sample, N ≥ 2. Costs at most 2048² cosines.

    Raises InputError for fewer than two rows.
    """
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise InputError(f"health signals need embeddings (N, D) with N ≥ 2, not {tuple(embeddings.shape)}")
    rows = evenly_spaced(embeddings, SAMPLES).float()
    z = F.normalize(rows, dim=1)
    different = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    cosines = (z @ z.T)[different]
    rank = rankme(rows)
    return {
        "health/std": float(functional.embedding_std(z)),
        "health/mean_cosine": float(cosines.mean()),
        # ‖x − y‖² = 2 − 2 cos on the unit sphere
        "health/uniformity": float((-2 * (2 - 2 * cosines)).exp().mean().log()),
        "health/rankme": rank,
        "health/rank_share": rank / min(rows.shape),
    }


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance between normalised embeddings (N, D) of two views of the same N samples."""
    return float((F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean())


def combined(evaluated: Mapping[str, float], training: Mapping[str, float]) -> dict[str, float]:
    """Metrics of an evaluation and what the latest step logged about health, under names that do not clash."""
    logged = {name: value for name, value in training.items() if name.startswith("health/")}
    entropy = {name: logged.pop(name) for name in ("health/teacher_entropy",) if name in logged}
    renamed = {f"health/training_{name.partition('/')[2]}": value for name, value in logged.items()}
    return {**evaluated, **entropy, **renamed}


def diagnose(
    metrics: Mapping[str, float], gains: Mapping[str, Mapping[str, Sequence[float]]] | None = None
) -> list[str]:
    """What is wrong, one sentence per finding; empty if no signal is past its threshold.

    `metrics` holds the latest value per name (see `combined`); names that are missing are not judged. `gains`: metric
    -> baseline -> points by which it is exceeded, with the ends of their interval; no gain is an interval that includes
    zero, and where none is known less than GAIN points.
    """
    return [
        *_diverged(metrics),
        *_embedding(metrics),
        *_training(metrics),
        *_teacher(metrics),
        *_gain(metrics, (gains or {}).get("eval/knn_top1", {})),
        *_clusters(metrics),
    ]


def _diverged(metrics: Mapping[str, float]) -> list[str]:
    broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if not broken:
        return []
    return [
        f"diverged: {', '.join(broken)} is not a finite number; lower the learning rate or clip gradients."
    ]


def _embedding(metrics: Mapping[str, float]) -> list[str]:
    std, rank, share = (metrics.get(f"health/{name}") for name in ("std", "rankme", "rank_share"))
    if std is not None and std < COLLAPSED_STD:
        return [
            f"collapsed: all images have nearly the same embedding (health/std {std:.3f}, below"
            f" {COLLAPSED_STD}; 1 is uniform)."
        ]
    low_share = share is not None and share < LOW_RANK_SHARE
    few = (
        rank is not None and rank < LOW_RANK and (share is None or share < 0.5)
    )  # a 2-d embedding is no finding
    if not (low_share or few):
        return []
    values = [f"health/rankme {rank:.1f}"] if rank is not None else []
    values += [f"{share:.1%} of the dimensions"] if share is not None else []
    return [
        f"dimensional collapse: the embeddings vary along few directions only ({', '.join(values)}; expected"
        f" at least {LOW_RANK:g} and {LOW_RANK_SHARE:.0%})."
    ]


def _training(metrics: Mapping[str, float]) -> list[str]:
    std = metrics.get("health/training_std")
    if std is None or 1 - std**2 < COLLAPSED_TRAINING_COSINE:
        return []
    return [
        f"collapsed in training: the embeddings that the loss sees are nearly the same for all images (mean cosine"
        f" {1 - std**2:.2f}, above {COLLAPSED_TRAINING_COSINE}; spread {std:.3f}, 1 is uniform)."
    ]


def _teacher(metrics: Mapping[str, float]) -> list[str]:
    found = []
    for name, entropy in metrics.items():
        if not name.endswith("teacher_entropy"):
            continue
        if entropy > FLAT_ENTROPY:
            found.append(
                f"teacher target is flat: its entropy is {entropy:.1%} of the maximum (above"
                f" {FLAT_ENTROPY:.0%}), so it holds no relation to learn; lower the teacher's temperature."
            )
        elif entropy < ONE_HOT_ENTROPY:
            found.append(
                f"teacher target is one-hot: its entropy is {entropy:.1%} of the maximum (below"
                f" {ONE_HOT_ENTROPY:.0%}), so only the nearest entry counts; raise the teacher's temperature."
            )
    return found


def _clusters(metrics: Mapping[str, float]) -> list[str]:
    if not any(name.startswith("health/level") for name in metrics):
        return []
    from raysurl.hierarchy import signals  # loads compiled code, which no other signal needs

    return signals.diagnose(metrics)


def _gain(metrics: Mapping[str, float], gains: Mapping[str, Sequence[float]]) -> list[str]:
    trained = metrics.get("eval/knn_top1")
    if trained is None:
        return []
    found = []
    for prefix, baseline in (("untrained", "the untrained encoder"), ("pixels", "raw pixels")):
        value = metrics.get(f"eval/{prefix}_knn_top1")
        if prefix in gains:
            points, low, high = gains[prefix]
            if low <= 0:
                found.append(
                    f"no gain: kNN accuracy {trained:.1f} % is not surely above that of {baseline}; the difference is"
                    f" {points:+.1f} points, in an interval of 95 % from {low:+.1f} to {high:+.1f}."
                )
        elif value is not None and trained < value + GAIN:
            found.append(
                f"no gain: kNN accuracy {trained:.1f} % does not exceed that of {baseline} ({value:.1f} %) by"
                f" {GAIN} points or more."
            )
    return found
