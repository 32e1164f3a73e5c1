"""Accuracies of predictions and of class scores, each with its interval.

Letters: Q test samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl import intervals
from raysurl.intervals import Measured

TOP = 5


def top1(predictions: Tensor, labels: Tensor) -> Measured:
    """Share of predictions (Q,) that equal labels (Q,), in percent."""
    return intervals.accuracy((predictions == labels).cpu().numpy())


def top5(scores: Tensor, labels: Tensor) -> Measured:
    """Share of samples whose label (Q,) is among the five highest scores (Q, C), in percent; ties as in argmax."""
    own = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    ahead = (scores > own) | ((scores == own) & before)
    return intervals.accuracy((ahead.sum(1) < TOP).cpu().numpy())


def top(name: str, scores: Tensor, labels: Tensor) -> Iterator[tuple[str, float]]:
    """`{name}_top1`, and `{name}_top5` where there are more classes than that."""
    yield f"{name}_top1", top1(scores.argmax(1), labels)
    if scores.shape[1] > TOP:
        yield f"{name}_top5", top5(scores, labels)


def top_names(name: str, num_classes: int) -> list[str]:
    """The names that `top` yields."""
    return [f"{name}_top1", *([f"{name}_top5"] if num_classes > TOP else [])]


def per_class(predictions: Tensor, labels: Tensor, *, seed: int) -> Measured:
    """Mean over the classes that are there of the share of right predictions (Q,), in percent, with the bootstrap's
    interval."""
    truth, right = labels.cpu().numpy(), (predictions == labels).cpu().numpy()

    def mean_share(taken: NDArray[np.int64]) -> float:
        all_of, right_of = np.bincount(truth, taken), np.bincount(truth, taken * right)
        return float(100.0 * (right_of[all_of > 0] / all_of[all_of > 0]).mean())

    return intervals.bootstrap(len(truth), mean_share, seed=seed, name="per class")
