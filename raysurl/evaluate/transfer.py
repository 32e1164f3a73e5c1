"""Linear classification on another data set, as Kornblith et al. 2019 ("Do better ImageNet models transfer better?").

Logistic regression by L-BFGS on features of centre crops. The L2 penalty is one of 45 values from 10⁻⁶ to 10⁵, evenly
spaced in the logarithm, of the summed cross-entropy; each fit begins at the one before. The best on the data set's own
validation split, or on a seeded fifth where it has none, is fitted again to all train samples. What is best, and
reported, is the accuracy that is usual for the data set: of all samples, or the mean over classes. Where images show
several classes (VOC07), each class has a logistic regression of its own, and the measure is the mean average precision
of eleven points.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl.errors import InputError
from raysurl.evaluate import logistic
from raysurl.evaluate.division import Division, hold_out
from raysurl.evaluate.features import Features
from raysurl.evaluate.precision import Ranking, precision_names, precisions
from raysurl.evaluate.scores import per_class, top, top_names
from raysurl.recipe import Evaluation

NEEDS = frozenset({"targets"})
OF_PIXELS = False
PENALTIES = tuple(np.logspace(5, -6, 45).tolist())  # strong to weak
HELD_OUT = 0.2
BY_CLASS = frozenset({"FGVCAircraft", "OxfordIIITPet", "Caltech101", "Flowers102"})  # of torchvision


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """`eval/transfer_top1` (and `_top5`), `eval/transfer_per_class` or `eval/transfer_map11` (and `_map`), in percent,
    and the penalty that was chosen."""
    if features.tags is not None:
        yield from _of_tags(features, features.tags, seed)
        return
    train, labels, classes = features.train, features.train_labels, features.num_classes
    by_class = features.of.partition(":")[2] in BY_CLASS
    penalty = choose(train, labels, held_out(features, seed), num_classes=classes, by_class=by_class)
    scale = logistic.Scaling.of(train)
    start = train.new_zeros(classes, train.shape[1] + 1)
    solution = logistic.fit(train, labels, start, penalty=penalty / len(train), scale=scale)
    scores = logistic.predict(features.test, solution, scale)
    if by_class:
        yield "eval/transfer_per_class", per_class(scores.argmax(1), features.test_labels, seed=seed)
    else:
        yield from top("eval/transfer", scores, features.test_labels)
    yield "eval/transfer_penalty", penalty


def _of_tags(features: Features, tags: tuple[Tensor, Tensor], seed: int) -> Iterator[tuple[str, float]]:
    train, known = features.train, tags[0]
    chosen = held_out(features, seed)
    kept, rows, truth = (~chosen).nonzero()[:, 0], train[chosen], known[chosen]
    scale = logistic.Scaling.of(train, kept)

    def judge(solution: Tensor) -> float:
        return Ranking(logistic.predict(rows, solution, scale), truth).mean("map11")

    penalties = [penalty / len(kept) for penalty in PENALTIES]
    best = logistic.path(
        train, known, penalties, judge, num_classes=known.shape[1], scale=scale, index=kept, loss=tag_loss
    )
    penalty = PENALTIES[penalties.index(best.penalty)]
    scale, start = logistic.Scaling.of(train), train.new_zeros(known.shape[1], train.shape[1] + 1)
    solution = logistic.fit(train, known, start, penalty=penalty / len(train), scale=scale, loss=tag_loss)
    yield from precisions(
        "eval/transfer", logistic.predict(features.test, solution, scale), tags[1], seed=seed
    )
    yield "eval/transfer_penalty", penalty


def tag_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Sum of binary cross-entropy over tags (n, T) in {1, 0, −1 = no part in it}."""
    present, judged = (tags == 1).to(logits), (tags >= 0).to(logits)
    return F.binary_cross_entropy_with_logits(logits, present, weight=judged, reduction="sum")


def held_out(features: Features, seed: int) -> Tensor:
    """(N,) bool: the train samples by which the penalty is chosen. Raises InputError where none or all would be."""
    chosen, count = features.validation, len(features.train)
    if chosen is None:
        chosen = torch.zeros(count, dtype=torch.bool, device=features.train.device)
        chosen[hold_out(count, HELD_OUT, seed, "transfer held out")[0].to(chosen.device)] = True
    if not chosen.any() or chosen.all():
        raise InputError(f"the transfer protocol needs at least 2 labelled train samples, not {count}")
    return chosen


def choose(train: Tensor, labels: Tensor, chosen: Tensor, *, num_classes: int, by_class: bool) -> float:
    """The penalty that is most accurate on the samples `chosen` (N,) of train (N, D); the strongest of equals."""
    kept, rows, truth = (~chosen).nonzero()[:, 0], train[chosen], labels[chosen]
    scale = logistic.Scaling.of(train, kept)

    def judge(solution: Tensor) -> float:
        right = (logistic.predict(rows, solution, scale).argmax(1) == truth).double()
        if not by_class:
            return float(right.mean())
        counts = torch.bincount(truth, minlength=num_classes)
        return float((torch.bincount(truth, right, minlength=num_classes) / counts)[counts > 0].mean())

    penalties = [penalty / len(kept) for penalty in PENALTIES]
    best = logistic.path(train, labels, penalties, judge, num_classes=num_classes, scale=scale, index=kept)
    return PENALTIES[penalties.index(best.penalty)]


def names(settings: Evaluation, division: Division) -> list[str]:
    """Of data that are judged by all samples and of data that are judged by class: it depends on their name."""
    if division.num_tags:
        return [*precision_names("eval/transfer"), "eval/transfer_penalty"]
    return [
        "eval/transfer_per_class",
        *top_names("eval/transfer", division.num_classes),
        "eval/transfer_penalty",
    ]
