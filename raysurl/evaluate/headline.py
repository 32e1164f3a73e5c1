"""Which of a run's numbers is its headline: the one that the paper of its recipe reports.

A recipe that compares embeddings or memory (`eval.features`) is of a paper that reports kNN of these (Super-AND, NPID,
AND, ISIF); all others report a linear probe of the backbone. Where neither was measured, it is kNN, of a k that a class
has images for.
"""

from __future__ import annotations

import re
from collections.abc import Collection

LINEAR = ("eval/linear_top1", "eval/lbfgs_top1")
KNN = re.compile(r"eval/knn(\d*)_top1")
K = 200  # of eval/knn_top1, which names none


def headline(metrics: Collection[str], features: str | None, smallest_class: int | None) -> str | None:
    """The name of one of the metrics, None where none of them is such an accuracy.

    `smallest_class`: images of the class that has the fewest to be found, where that is known.
    """
    linear = next((name for name in LINEAR if name in metrics), None)
    neighbours = {name: int(found[1] or K) for name in metrics if (found := KNN.fullmatch(name))}
    if linear and (features in (None, "backbone") or not neighbours):
        return linear
    if not neighbours:
        return None
    if "eval/knn_top1" in neighbours and (smallest_class is None or smallest_class >= K):
        return "eval/knn_top1"
    most = smallest_class or K
    fitting = {name: k for name, k in neighbours.items() if k <= most}
    # the largest k that fits; where none does, the smallest
    return max(fitting, key=lambda n: fitting[n]) if fitting else min(neighbours, key=lambda n: neighbours[n])


def of_the_backbone(untrained: dict[str, float]) -> dict[str, float]:
    """kNN of the untrained backbone under a name of its own, where the headline's kNN is of something else."""
    known = "eval/untrained_knn"
    return {
        (name.replace(known, "eval/untrained_backbone_knn", 1) if name.startswith(known) else name): value
        for name, value in untrained.items()
    }
