"""Is a hierarchy alive? Signals per level, for the record, and sentences on what they mean.

health/level{h}_clusters       number of clusters
health/level{h}_children       mean number of children: samples, or clusters of the level below
health/level{h}_largest_share  share of the samples in the largest one
health/level{h}_entropy        of the clusters' sizes, as a share of log(clusters): 1 is even
health/level{h}_splits         clusters added by splitting since the last look, before merging
health/level{h}_merges         clusters united with another or left by all since the last look
health/level{h}_longest_wait   updates that a touched cluster waited for its rework, at most, since the last look
health/level{h}_churn          share of the samples that are not in the largest part of their last cluster any more
health/level{h}_nmi, _ari, _purity   against labels, which training never sees
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

GIANT_SHARE = 0.5
FEW_CHILDREN = {"level2": 2.0}  # per cluster: below, most samples stand alone …
FEW_CHILDREN_ABOVE = 1.2  # … or a level above says what the one below it does


def of_level(clusters: NDArray[np.int64], labels: NDArray[np.int64] | None) -> dict[str, float]:
    """Signals of one level's cluster ids (N,); labels (N,), −1 = none."""
    _, inverse, size = np.unique(clusters, return_inverse=True, return_counts=True)
    share = size / size.sum()
    found = {
        "clusters": float(len(size)),
        "largest_share": float(share.max()),
        "entropy": float(-(share * np.log(share)).sum() / math.log(max(len(size), 2))),
    }
    if labels is None or not (labels >= 0).any():
        return found
    # most of what a process of RCL would import, where this is asked of the memory alone
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = labels >= 0
    truth, ids = labels[known], inverse[known]
    return found | {
        "nmi": float(normalized_mutual_info_score(truth, ids)),
        "ari": float(adjusted_rand_score(truth, ids)),
        "purity": kept_together(ids, truth),
    }


def kept_together(groups: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Share of the samples (n,) that are in the largest part that `others` cut from their group of `groups`."""
    pairs, count = np.unique(np.stack([groups, others]), axis=1, return_counts=True)
    largest = np.zeros(int(groups.max()) + 1, np.int64)
    np.maximum.at(largest, pairs[0], count)
    return float(largest.sum() / len(groups))


def diagnose(metrics: Mapping[str, float]) -> list[str]:
    """Warnings on both extremes, fragments and one giant cluster; levels are found by name in `metrics`."""
    found = []
    for name in sorted(metrics):
        if not (match := re.fullmatch(r"health/(level\d+)_clusters", name)):
            continue
        level, clusters = match[1], metrics[name]
        share, children = (metrics.get(f"health/{level}_{s}") for s in ("largest_share", "children"))
        if share is not None and share > GIANT_SHARE:
            found.append(
                f"giant cluster: {share:.0%} of the samples are in one of the {clusters:.0f} clusters of"
                f" hierarchy {level}; raise its merge threshold."
            )
        if children is not None and children < FEW_CHILDREN.get(level, FEW_CHILDREN_ABOVE):
            found.append(
                f"fragmented: hierarchy {level} has {clusters:.0f} clusters of {children:.1f} members on average;"
                " lower its merge threshold."
            )
    return found
