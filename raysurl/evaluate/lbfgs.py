"""Multinomial logistic regression by L-BFGS: the linear probe that has no learning rate to choose.

Features are centred on the train mean and divided by one number (their root mean square), which keeps angles.
The objective is mean cross-entropy + λ/2·‖W‖² (no penalty on the bias). λ is chosen by accuracy on a held-out
fifth of the train features, the test features play no part; the probe is then fitted to all train features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl import streams
from raysurl.errors import InputError
from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features, top1
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels"})
OF_PIXELS = False
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # λ, strong to weak: each fit starts from the one before
HELD_OUT = 0.2
ITERATIONS = 200


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Top-1 accuracy in percent on the test features."""
    train, test = standardise(features.train, features.test)
    labels, num_classes = features.train_labels, features.num_classes
    penalty = choose_penalty(train, labels, num_classes=num_classes, seed=seed)
    start = train.new_zeros(num_classes, train.shape[1] + 1)
    solution = fit(train, labels, start, penalty=penalty)
    yield "eval/lbfgs_top1", top1(predict(test, solution), features.test_labels)


def names(settings: Evaluation, division: Division) -> list[str]:
    return ["eval/lbfgs_top1"]


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Centre train (N, D) and test (Q, D) on the train mean; divide by the train root mean square."""
    mean = train.mean(0)
    scale = (train - mean).square().mean().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    return (train - mean) / scale, (test - mean) / scale


def choose_penalty(train: Tensor, labels: Tensor, *, num_classes: int, seed: int) -> float:
    """The λ that is most accurate on a seeded fifth of train (N, D), labels (N,); the strongest of equals."""
    if len(train) < 2:
        raise InputError(f"the lbfgs protocol needs at least 2 labelled train samples, not {len(train)}")
    order = torch.randperm(len(train), generator=streams.torch_stream(seed, "penalty")).to(train.device)
    held_out, kept = order.tensor_split([max(1, round(len(train) * HELD_OUT))])
    solution = train.new_zeros(num_classes, train.shape[1] + 1)
    best, best_accuracy = PENALTIES[0], -1.0
    for penalty in PENALTIES:
        solution = fit(train[kept], labels[kept], solution, penalty=penalty)
        accuracy = top1(predict(train[held_out], solution), labels[held_out])
        if accuracy > best_accuracy:
            best, best_accuracy = penalty, accuracy
    return best


def fit(train: Tensor, labels: Tensor, start: Tensor, *, penalty: float) -> Tensor:
    """Minimise the objective from `start` (C, D + 1), weights and a last column of biases -> same shape."""
    solution = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [solution], max_iter=ITERATIONS, tolerance_grad=1e-5, history_size=20, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(train, solution[:, :-1], solution[:, -1])
        loss = F.cross_entropy(logits, labels) + 0.5 * penalty * solution[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return solution.detach()


def predict(rows: Tensor, solution: Tensor) -> Tensor:
    """Classes (Q,) of rows (Q, D) under a solution (C, D + 1)."""
    return F.linear(rows, solution[:, :-1], solution[:, -1]).argmax(1)
