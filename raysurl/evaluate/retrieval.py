"""Retrieval: test images as queries against the train images as the gallery, by cosine.

Recall@k is the share of queries with an image of their class among the k nearest (Jégou et al. 2011; Musgrave et al.
2020). mAP is the mean over queries of the average precision of the whole ranking, Σ_j j / r_j over the ranks r_j of the
images of the query's class, divided by their number. A query whose class the gallery lacks counts as missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl import intervals
from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features
from raysurl.evaluate.nearest import ranked_blocks
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels"})
OF_PIXELS = True


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """`eval/retrieval_recall1` … for each k, and `eval/retrieval_map`, in percent."""
    given = (features.train, features.train_labels, features.test, features.test_labels)
    found, precision = retrieve(*given, ks=settings.retrieval_k)
    for k, right in zip(settings.retrieval_k, found, strict=True):
        yield f"eval/retrieval_recall{k}", intervals.accuracy(right)
    yield "eval/retrieval_map", intervals.bootstrap_mean(100 * precision, seed=seed, name="retrieval")


def names(settings: Evaluation, division: Division) -> list[str]:
    return [*(f"eval/retrieval_recall{k}" for k in settings.retrieval_k), "eval/retrieval_map"]


def retrieve(
    gallery: Tensor, gallery_labels: Tensor, queries: Tensor, labels: Tensor, *, ks: Sequence[int]
) -> tuple[list[NDArray[np.bool_]], NDArray[np.float64]]:
    """For each k which queries (Q,) find their class, and the average precision (Q,) of each, in [0, 1].

    `gallery` (N, D) and `queries` (Q, D) of any length; ties by the gallery's order, as in raysurl.evaluate.nearest.
    """
    places = torch.arange(1, len(gallery) + 1, device=gallery.device, dtype=torch.float64)
    found = np.zeros((len(ks), len(queries)), bool)
    precision = np.zeros(len(queries))
    start = 0
    for _, order in ranked_blocks(gallery, queries):
        rows = slice(start, start := start + len(order))
        same = gallery_labels[order] == labels[rows, None]
        found[:, rows] = torch.stack([same[:, :k].any(1) for k in ks]).cpu().numpy()
        of_place = same.cumsum(1) / places
        precision[rows] = (of_place.mul_(same).sum(1) / same.sum(1).clamp(min=1)).cpu().numpy()
    return list(found), precision
