"""The one input of every protocol: features that were computed once and are kept.

Letters used in this package: N bank (train) samples, Q test samples, D feature dimension, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from raysurl.errors import InputError

BLOCK = 2**24  # values looked at together, of which torch makes copies of 100 MiB


@dataclass(frozen=True)
class NodeFeatures:
    """All labelled samples: `features` (N, D), `labels` (N,), and `split` (N,) of raysurl.data.planetoid, if known."""

    features: Tensor
    labels: Tensor
    split: Tensor | None


@dataclass(frozen=True)
class Tuned:
    """`scores` (Q, C) of the test samples, on rank 0; the classifier, and the rates that were chosen."""

    scores: Tensor
    classifier: nn.Module
    lr: float
    head_times: float


@dataclass(frozen=True)
class Features:
    """Features of the train and test images, centre crop and no augmentation, with their labels.

    What only some protocols ask for: `inputs` (M, D′), the raw values of the train samples `embedding_points`; `nodes`,
    all labelled samples with their division; `augmented`, from an epoch to features (N, D) of random views of the train
    images, to be called once for each epoch, in order, as all workers take part; `tuned`, what came of each
    fine-tuning; `of`, the name of the data; `validation` (N,) bool, which train samples are its own validation split;
    `tags`, of samples that show several classes at once, (N, T) and (Q, T) int8: 1 = shown, 0 = not, −1 = not judged;
    `detected`, what came of a detector.
    `disturbed`, policy -> features (Q, D) of augmented test images; `texts` (C, D), unit embeddings of the class names.

    `train` (N, D) and `test` (Q, D) float; `train_labels` (N,) and `test_labels` (Q,) int64 in [0, C), −1
    where a label is unknown. All on one device. Raises InputError if shapes disagree, if a label is outside
    its range, or if a feature is not finite (the encoder has diverged).
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    num_classes: int
    inputs: Tensor | None = None
    nodes: NodeFeatures | None = None
    augmented: Callable[[int], Tensor] | None = None
    tuned: Mapping[str, Tuned] | None = None
    of: str = ""
    validation: Tensor | None = None
    tags: tuple[Tensor, Tensor] | None = None
    detected: Mapping[str, float] | None = None
    disturbed: Mapping[str, Tensor] | None = None
    texts: Tensor | None = None

    def __post_init__(self) -> None:
        for name, rows, labels in (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            if rows.ndim != 2 or labels.shape != rows.shape[:1]:
                raise InputError(
                    f"{name} features of shape {tuple(rows.shape)} and labels of shape {tuple(labels.shape)}"
                    " must be (N, D) and (N,)"
                )
            parts = rows.split(max(1, BLOCK // max(1, rows.shape[1])))
            broken = (~torch.cat([torch.isfinite(part).all(1) for part in parts])).nonzero()
            if len(broken):
                raise InputError(
                    f"{len(broken)} of {len(rows)} {name} features are not finite (the first is row"
                    f" {int(broken[0])}): the encoder has diverged"
                )
            check_labels(labels, self.num_classes, f"{name} labels", unknown=True)
        if self.train.shape[1] != self.test.shape[1]:
            raise InputError(
                f"train features have {self.train.shape[1]} dimensions and test features"
                f" {self.test.shape[1]}; they must come from one encoder"
            )

    @classmethod
    def unlabelled(cls, train: Tensor) -> Features:
        """Features (N, D) of images without any label: only the protocols that need none can run."""
        unknown = torch.full((len(train),), -1, dtype=torch.int64, device=train.device)
        return cls(train, unknown, train[:0], unknown[:0], 0)

    @property
    def has_labels(self) -> bool:
        """Whether some train sample and some test sample has a label."""
        return bool((self.train_labels >= 0).any()) and bool((self.test_labels >= 0).any())

    def labelled(self) -> Features:
        """The samples whose label is known."""
        train, test = self.train_labels >= 0, self.test_labels >= 0
        if train.all() and test.all():
            return self
        augmented = self.augmented
        return Features(
            self.train[train],
            self.train_labels[train],
            self.test[test],
            self.test_labels[test],
            self.num_classes,
            nodes=self.nodes,
            augmented=augmented and (lambda epoch: augmented(epoch)[train.cpu()]),
            of=self.of,
            validation=None if self.validation is None else self.validation[train],
            tuned=self.tuned and {n: replace(t, scores=t.scores[test]) for n, t in self.tuned.items()},
            disturbed=self.disturbed and {policy: rows[test] for policy, rows in self.disturbed.items()},
            texts=self.texts,
        )


def pixel_features(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, num_classes: int
) -> Features:
    """Raw pixels as features, the baseline that needs no training.

    `train` (N, C, H, W) and `test` (Q, C, H, W) uint8 or float, centre crops. Each image is flattened and the
    mean train image is subtracted: without it every cosine between images is near 1. What is float already is written
    over, as there may be no room for it twice.
    """
    flat_train, flat_test = train.flatten(1).float(), test.flatten(1).float()
    mean = flat_train.mean(0)
    return Features(flat_train.sub_(mean), train_labels, flat_test.sub_(mean), test_labels, num_classes)


def check_labels(labels: Tensor, num_classes: int, name: str, *, unknown: bool = False) -> None:
    """Raise InputError unless labels (N,) lie in [0, num_classes), or are −1 where `unknown` allows it."""
    low = -1 if unknown else 0
    if len(labels) and (int(labels.min()) < low or int(labels.max()) >= num_classes):
        raise InputError(
            f"{name} run from {int(labels.min())} to {int(labels.max())}; with num_classes={num_classes} they"
            f" must lie in [0, {num_classes - 1}]" + (" (or be −1 for unknown)" if unknown else "")
        )
