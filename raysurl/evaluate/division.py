"""Which samples are compared with which: the bank, and the test set that a data set names, brings, or gives up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysurl import streams
from raysurl.data.planetoid import TEST, TRAIN

HELD_OUT = 10  # without a test set, each tenth labelled sample of a class is one
ONE_CLASS = "all labels are of one class, so that no accuracy says anything"
SEEN = "the encoder trains on the test images, never on their labels"

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """`bank` and `test`: sample indices, the latter of the test set where there is one, and empty without labels.

    `labels` (N,) and `split` (N,) of all samples, where known; `note` says what was done; `num_tags`: classes of
    samples that show several at once, and have no labels.
    """

    bank: Index
    test: Index
    note: str
    labels: NDArray[np.int64] | None
    split: NDArray[np.uint8] | None
    num_tags: int = 0

    @property
    def num_classes(self) -> int:
        """Classes are numbered from 0; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max(initial=-1)) + 1


def divide(
    labels: NDArray[np.int64] | None,
    usable: Index,
    split: NDArray[np.uint8] | None = None,
    test: Index | None = None,
    *,
    tags: NDArray[np.int8] | None = None,
) -> Division:
    """Divide the `usable` samples. `test`: those of a test set of its own. `tags` (N, T): what they have for labels."""
    if tags is not None:
        note = "" if test is not None else "no test set, by which tags could be judged"
        return Division(usable, usable[:0] if test is None else test, note, None, split, tags.shape[1])
    known = usable[:0] if labels is None else usable[labels[usable] >= 0]
    alike = ONE_CLASS if labels is not None and len(known) and np.ptp(labels[known]) == 0 else ""
    if test is not None and len(known) > 1:
        return Division(known, test, alike, labels, split)
    if split is not None:
        note = f"the division of the data: what is for training is the bank, what is for the test the test set; {SEEN}"
        bank, held_out = known[split[known] == TRAIN], known[split[known] == TEST]
    else:
        note = f"no test set (data.eval_path): every tenth labelled sample of a class is one; {SEEN}"
        held_out = each_tenth(known, labels)
        bank = np.setdiff1d(known, held_out)
    if len(bank) > 1 and len(held_out):
        return Division(bank, held_out, "; ".join(filter(None, [note, alike])), labels, split)
    few = f"{len(known)} labelled samples are too few" if len(known) else "no labels"
    if len(known) > 1 and not len(held_out) and split is None:
        few = "no class has two labelled samples"
    return Division(usable, usable[:0], f"{few}: kNN and linear probes are left out", labels, split)


def each_tenth(index: Index, labels: NDArray[np.int64] | None) -> Index:
    """Of the samples `index` (n,), rising: each tenth of them, class after class, so that no order of the data, classes
    in turns above all, leaves a class out of the test set or of the bank. Of less than ten samples of a class there may
    be none in the test set, and the only sample of a class never is."""
    if labels is None:
        return index[::HELD_OUT]
    several = index[np.bincount(labels[index])[labels[index]] > 1]
    by_class = several[np.argsort(labels[several], kind="stable")]
    return np.sort(by_class[::HELD_OUT])


def hold_out(count: int, share: float, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Positions of `count` samples: a seeded `share` of them to choose settings by, at least one, and the others."""
    order = torch.randperm(count, generator=streams.torch_stream(seed, name))
    held_out, kept = order.tensor_split([max(1, round(count * share))])
    return held_out, kept


def some(count: int, limit: int, seed: int, name: str) -> Tensor:
    """At most `limit` positions of `count` samples, rising: a seeded draw, for evenly spaced ones may all be of one
    class where classes come in turns."""
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=streams.torch_stream(seed, name))[:limit].sort().values


def embedding_points(count: int, limit: int) -> Tensor:
    """At most `limit` positions of `count` samples, of which an embedding is judged, the same ones for every run.

    Not evenly spaced ones: of MNIST's 60,000 every twelfth has a trustworthiness from .925 to .955 on one embedding,
    depending on where they begin, and as many that are drawn from .939 to .942.
    """
    return some(count, limit, 0, "embedding points")
