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
health/alpha_req        power by which the eigenvalues of the features fall (α-ReQ): good features have one near 1
health/lidar            effective number of dimensions that tell samples apart from their own views (LiDAR)
health/duplicate_share  share of the samples of which another one has the same embedding
health/dead_dimensions  share of the dimensions that hardly differ between samples: their standard deviation is below a
                        thousandth of the largest
health/teacher_entropy  entropy of the teacher's distribution as a share of log K: 0 one-hot, 1 flat;
                        logged by methods that have one

health/grad_norm        of the gradient of all parameters in a step, before clipping
health/update_share … input_std   measured by the trainer at the end of each epoch, see raysurl.train.examination

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
from raysurl.functional import evenly_spaced
from raysurl.hierarchy import signals as of_clusters
from raysurl.spectra import alpha_req, rankme

_NAMES = "std mean_cosine uniformity rankme rank_share alpha_req duplicate_share dead_dimensions"
SIGNALS = tuple(f"health/{name}" for name in _NAMES.split())
LARGEST = ("health/update_share", "health/teacher_motion")  # judged by the largest value of all epochs
SAMPLES = 2048  # the pairwise signals use at most so many samples, evenly spaced

# Thresholds. Backbone features behind a ReLU are non-negative and score low on `std` in good health too
# (an untrained ResNet about 0.1 to 0.3), so the bounds are far below what trained encoders show.
COLLAPSED_STD = 0.05
COLLAPSED_TRAINING_COSINE = 0.9  # between head outputs of different images; spread² = 1 − mean cosine
SURELY_COLLAPSED_COSINE = (
    0.98  # healthy BYOL passes .974 in its first hundred steps; dead runs stay above .99
)
LIVE_STD = (
    0.3  # of the features: below SURELY_COLLAPSED_COSINE such a run is alive, unless its target is flat
)
LOW_RANK_SHARE = 0.05
LOW_RANK = 3.0
FLAT_ENTROPY = 0.95
ONE_HOT_ENTROPY = 0.01
SAME_COSINE = 1 - 1e-6  # of two embeddings that count as one: rounding in fp32 is a tenth of that
SAME_LENGTH = 1e-4  # and of their lengths, relative: points of a plane may share a direction
SAME_SHARE = 1e-3  # of the largest deviation of a dimension, below which another counts as dead
SAME_STD = 1e-3  # spread of embeddings that are one and the same
DUPLICATES = 0.5  # of the samples: some data hold copies, but no data are copies for the most part
STEEP_UPDATE = (
    0.05  # of the weights' length in one step: .001 to .032 in health, .067 to 1.5 at 100 times the rate
)
STILL_TEACHER = 1e-4  # of the student's way; a momentum of 0.9999 makes it 1e-3 in an epoch of 20 steps
STALE_QUEUE = 1.5  # times of the steps that renew a queue; one that is fed cannot come above 1
SORTED_BATCHES = 0.75  # of the classes of a full shuffle; two classes, sorted, leave half of them
FAR_MEAN = 3.0  # of normalised pixels: black images under ImageNet's mean are at −2.1
LOW_STD, HIGH_STD = 0.3, 3.3  # of the same: pixels in 0 … 1 as they are have .25
GAIN = 0.5  # points of kNN accuracy that count as better than a baseline, where no interval says what chance does


# findings that only an evaluation can make
OF_EVALUATION = ("collapsed", "dimensional collapse", "duplicates")


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
    rank, deviation = rankme(rows), rows.std(dim=0, correction=0)
    return {
        "health/std": float(functional.embedding_std(z)),
        "health/mean_cosine": float(cosines.mean()),
        # ‖x − y‖² = 2 − 2 cos on the unit sphere
        "health/uniformity": float((-2 * (2 - 2 * cosines)).exp().mean().log()),
        "health/rankme": rank,
        "health/rank_share": rank / min(rows.shape),
        "health/alpha_req": alpha_req(rows),
        "health/duplicate_share": float(_twins(rows, z).float().mean()),
        "health/dead_dimensions": float((deviation < SAME_SHARE * deviation.max()).float().mean()),
    }


def _twins(rows: Tensor, z: Tensor) -> Tensor:
    """(N,) bool: rows (N, D), of directions z, to which another one is equal but for rounding."""
    length = rows.norm(dim=1)
    alike = z @ z.T > SAME_COSINE
    alike &= (length[:, None] - length).abs() <= SAME_LENGTH * torch.maximum(length[:, None], length)
    return alike.fill_diagonal_(False).any(1)


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance between normalised embeddings (N, D) of two views of the same N samples."""
    return float((F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean())


_OF_STEPS = ("health/teacher_entropy", "health/grad_norm")  # which no evaluation has


def combined(evaluated: Mapping[str, float], training: Mapping[str, float]) -> dict[str, float]:
    """Metrics of an evaluation and what the latest step logged about health, under names that do not clash."""
    logged = {name: value for name, value in training.items() if name.startswith("health/")}
    entropy = {name: logged.pop(name) for name in _OF_STEPS if name in logged}
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
        *_data(metrics),  # causes before what comes of them
        *_updates(metrics),
        *_memory(metrics),
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
            f" {COLLAPSED_STD}; 1 is uniform); {_OF_COLLAPSE}."
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
        f" at least {LOW_RANK:g} and {LOW_RANK_SHARE:.0%}); likely cause: a loss that pulls views together more than it"
        " spreads them; try a smaller train.optimizer.weight_decay or train.optimizer.lr, a wider head, or a larger"
        " train.batch_size."
    ]


def _training(metrics: Mapping[str, float]) -> list[str]:
    std = metrics.get("health/training_std")
    if std is None or 1 - std**2 < COLLAPSED_TRAINING_COSINE:
        return []
    alive = (
        metrics.get("health/std", 0.0) > LIVE_STD and metrics.get("health/teacher_entropy", 0) <= FLAT_ENTROPY
    )
    if alive and 1 - std**2 < SURELY_COLLAPSED_COSINE:
        return []
    return [
        f"collapsed in training: the embeddings that the loss sees are nearly the same for all images (mean cosine"
        f" {1 - std**2:.2f}, above {COLLAPSED_TRAINING_COSINE}; spread {std:.3f}, 1 is uniform); {_OF_COLLAPSE}."
    ]


_OF_COLLAPSE = (
    "likely cause: nothing in the loss keeps samples apart, or steps so large that it cannot; try a smaller"
    " train.optimizer.lr, or where the method has a teacher a sharper one (method.tau_teacher) or a slower one"
    " (method.momentum)"
)


def _updates(metrics: Mapping[str, float]) -> list[str]:
    moved = metrics.get("health/update_share")
    if moved is None or moved <= STEEP_UPDATE:
        return []
    return [
        f"steps too large: one step moved the weights by {moved:.1%} of their length (above {STEEP_UPDATE:.0%}); likely"
        " cause: a learning rate that is ten times too high, or a warm-up that is too short; try a tenth of"
        " train.optimizer.lr, a longer train.schedule.warmup_epochs, or train.clip=1."
    ]


def _memory(metrics: Mapping[str, float]) -> list[str]:
    """Of what is remembered, unless keys that are all the same hide whether it is fed."""
    lag, age = metrics.get("health/queue_lag"), metrics.get("health/queue_age", math.nan)
    spreads = [metrics[name] for name in ("health/std", "health/training_std") if name in metrics]
    if lag is None or lag <= STALE_QUEUE or min(spreads, default=1.0) < SAME_STD:
        return []
    return [
        f"dead queue: what memory holds is {lag:.1f} times as old as it would be if each step's keys reached it,"
        f" {age:.0f} steps (above {STALE_QUEUE}); likely cause: the keys are not pushed, or pushed elsewhere;"
        " look at the method's Output.push, and try a smaller method.queue_size."
    ]


_OF_PIXELS = ("health/pixel_mean", "health/pixel_std")


def _data(metrics: Mapping[str, float]) -> list[str]:
    """Of what the method is given: the order of the samples, and their pixels."""
    found = []
    mixed = metrics.get("health/batch_mix")
    if mixed is not None and mixed < SORTED_BATCHES:
        found.append(
            f"sorted batches: a batch holds {mixed:.0%} of the variety that a full shuffle would give it (below"
            f" {SORTED_BATCHES:.0%}); likely cause: samples that lie sorted by class and are shuffled too little; try a"
            " larger data.window, more data.reads, or `raysurl shuffle` once."
        )
    mean, std = metrics.get("health/input_mean"), metrics.get("health/input_std")
    if mean is not None and std is not None and (abs(mean) > FAR_MEAN or not LOW_STD <= std <= HIGH_STD):
        own = [f"[{', '.join([f'{metrics[n]:.3f}'] * 3)}]" for n in _OF_PIXELS if n in metrics]
        better = f"views.mean={own[0]} views.std={own[1]}" if len(own) == 2 else "those of these data"
        found.append(
            f"wrong normalisation: the encoder sees pixels of mean {mean:.2f} and deviation {std:.3f}, where 0 and 1"
            f" are meant (no further than {FAR_MEAN:g}, and {LOW_STD} to {HIGH_STD}); likely cause: views.mean and"
            f" views.std are of other data, or of pixels in 0 … 255; try {better}."
        )
    copies = metrics.get("health/duplicate_share")
    if copies is not None and copies > DUPLICATES and not _embedding(metrics):
        found.append(
            f"duplicates: {copies:.0%} of the samples have the same embedding as another one (above {DUPLICATES:.0%});"
            " likely cause: the data hold each image several times, or it is read wrongly; look at the report's"
            " neighbours and the names in manifest.parquet, and try data.path= without copies."
        )
    return found


def _teacher(metrics: Mapping[str, float]) -> list[str]:
    found = []
    motion = metrics.get("health/teacher_motion")
    if motion is not None and motion < STILL_TEACHER:
        found.append(
            f"teacher does not move: in no epoch it went further than {motion:.1e} of the student's way (below"
            f" {STILL_TEACHER:.0e}); likely cause: a momentum of 1, or an average that is never updated; try"
            " method.momentum=0.99."
        )
    for name, entropy in metrics.items():
        if not name.endswith("teacher_entropy"):
            continue
        if entropy > FLAT_ENTROPY:
            found.append(
                f"teacher target is flat: its entropy is {entropy:.1%} of the maximum (above"
                f" {FLAT_ENTROPY:.0%}), so it holds no relation to learn; likely cause: a teacher's temperature that is"
                " too high for its cosines; try half of method.tau_teacher."
            )
        elif entropy < ONE_HOT_ENTROPY:
            found.append(
                f"teacher target is one-hot: its entropy is {entropy:.1%} of the maximum (below"
                f" {ONE_HOT_ENTROPY:.0%}), so only the nearest entry counts; likely cause: a teacher's temperature that"
                " is too low; try twice method.tau_teacher."
            )
    return found


def _clusters(metrics: Mapping[str, float]) -> list[str]:
    if not any(name.startswith("health/level") for name in metrics):
        return []
    return of_clusters.diagnose(metrics)


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
