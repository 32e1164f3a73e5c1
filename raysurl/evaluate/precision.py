"""Mean average precision of images that show several classes at once, of two kinds.

`map`: the area under precision as a function of recall, after each precision was raised to the largest at that recall
or above (VOC's from 2010 on, and the code of Goyal et al. 2019, PCL and VISSL for VOC07). `map11`: the mean of these
raised precisions at the recalls 0, .1, …, 1 (VOC's own of 2007). Equal scores are one threshold. An image in which a
class is not to be judged (−1) is left out for that class, and a class that no test image shows for all.

Letters: Q test images, T classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysurl import intervals

Kind = Literal["map", "map11"]
KINDS: tuple[Kind, ...] = ("map", "map11")
RECALLS = np.arange(11) / 10

Floats = NDArray[np.float64]


class Ranking:
    """Scores (Q, T) and tags (Q, T) in {1, 0, −1}, ranked once for any number of resamplings."""

    def __init__(self, scores: Tensor, tags: Tensor) -> None:
        values, truth = scores.double().cpu().numpy().T, tags.cpu().numpy().T
        kept = (truth == 1).any(1)
        values, truth = values[kept], truth[kept]
        self.order = np.argsort(-values, axis=1, kind="stable")
        ranked = np.take_along_axis(values, self.order, 1)
        self.truth = np.take_along_axis(truth, self.order, 1)
        count = values.shape[1]
        # where the run of equal scores ends in which a rank lies
        ends = np.ones_like(ranked, bool)
        ends[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
        at = np.where(ends, np.arange(count), count)
        self.end = np.minimum.accumulate(at[:, ::-1], axis=1)[:, ::-1]

    def precisions(self, kind: Kind, taken: NDArray[np.int64] | None = None) -> Floats:
        """(T′,) average precision of each class that is shown; `taken` (Q,): how often each image counts."""
        weight = (self.truth >= 0).astype(np.float64)
        if taken is not None:
            weight *= taken[self.order]
        right = np.take_along_axis(np.cumsum(weight * (self.truth == 1), axis=1), self.end, 1)
        seen = np.take_along_axis(np.cumsum(weight, axis=1), self.end, 1)
        precision = np.divide(right, seen, out=np.zeros_like(right), where=seen > 0)
        highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        shown = right[:, -1:] > 0  # a resampling may leave a class out
        recall = np.divide(right, right[:, -1:], out=np.zeros_like(right), where=shown)
        found = _area(recall, highest) if kind == "map" else _eleven(recall, highest)
        return np.where(shown[:, 0], found, np.nan)

    def mean(self, kind: Kind, taken: NDArray[np.int64] | None = None) -> float:
        """In percent, over classes; 0 where no class is shown."""
        found = self.precisions(kind, taken)
        found = found[~np.isnan(found)]
        return float(100.0 * found.mean()) if len(found) else 0.0


def _area(recall: Floats, highest: Floats) -> Floats:
    area: Floats = (np.diff(recall, axis=1, prepend=0.0) * highest).sum(1)
    return area


def _eleven(recall: Floats, highest: Floats) -> Floats:
    padded = np.pad(highest, ((0, 0), (0, 1)))
    at = [np.searchsorted(row, RECALLS - 1e-12) for row in recall]
    return np.array([row[places].mean() for row, places in zip(padded, at, strict=True)])


def precisions(name: str, scores: Tensor, tags: Tensor, *, seed: int) -> Iterator[tuple[str, float]]:
    """`{name}_map` and `{name}_map11` in percent, with the bootstrap's intervals over test images."""
    ranking = Ranking(scores, tags)
    for kind in KINDS:
        statistic = partial(ranking.mean, kind)
        yield f"{name}_{kind}", intervals.bootstrap(len(tags), statistic, seed=seed, name=kind)


def precision_names(name: str) -> list[str]:
    """The names that `precisions` yields."""
    return [f"{name}_{kind}" for kind in KINDS]
