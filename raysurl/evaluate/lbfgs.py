"""The linear probe that has no learning rate to choose: logistic regression (raysurl.evaluate.logistic).

Its penalty λ is chosen by accuracy on a held-out fifth of the train features, the test features play no part; the probe
is then fitted to all train features.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from raysurl.errors import InputError
from raysurl.evaluate import logistic
from raysurl.evaluate.division import Division, hold_out
from raysurl.evaluate.features import Features
from raysurl.evaluate.scores import top, top1, top_names
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels"})
OF_PIXELS = False
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # λ, strong to weak
HELD_OUT = 0.2


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Top-1 and top-5 accuracy in percent on the test features."""
    train, labels, num_classes = features.train, features.train_labels, features.num_classes
    scale = logistic.Scaling.of(train)
    penalty = choose_penalty(train, labels, num_classes=num_classes, seed=seed, scale=scale)
    start = train.new_zeros(num_classes, train.shape[1] + 1)
    solution = logistic.fit(train, labels, start, penalty=penalty, scale=scale)
    yield from top("eval/lbfgs", logistic.predict(features.test, solution, scale), features.test_labels)


def names(settings: Evaluation, division: Division) -> list[str]:
    return top_names("eval/lbfgs", division.num_classes)


def choose_penalty(
    train: Tensor, labels: Tensor, *, num_classes: int, seed: int, scale: logistic.Scaling | None = None
) -> float:
    """The λ that is most accurate on a seeded fifth of train (N, D), labels (N,); the strongest of equals."""
    if len(train) < 2:
        raise InputError(f"the lbfgs protocol needs at least 2 labelled train samples, not {len(train)}")
    held_out, kept = (at.to(train.device) for at in hold_out(len(train), HELD_OUT, seed, "penalty"))
    rows, truth = train[held_out], labels[held_out]

    def judge(solution: Tensor) -> float:
        return top1(logistic.predict(rows, solution, scale).argmax(1), truth)

    best = logistic.path(train, labels, PENALTIES, judge, num_classes=num_classes, scale=scale, index=kept)
    return best.penalty
