"""Multinomial logistic regression by L-BFGS, for every protocol that judges features by one.

Features are centred on the train mean and divided by one number, their root mean square, which keeps angles. The
objective is mean cross-entropy + λ/2·‖W‖², without a penalty on the bias. Features are read in blocks and never
copied, so that they may be more than memory holds.

Letters: N train rows, Q others, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl.nets.eager import LBFGS

ITERATIONS = 200
BLOCK = 2**24  # values of features read together: 64 MiB

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits (n, C) and labels (n,) or (n, C): their sum, where 0 ≤ n."""


@dataclass(frozen=True)
class Scaling:
    """What makes features (…, D) standard: minus `mean` (D,), divided by `by`."""

    mean: Tensor
    by: Tensor

    @classmethod
    def of(cls, train: Tensor, index: Tensor | None = None) -> Scaling:
        """Of train (N, D), or of its rows `index`."""
        count = len(train) if index is None else len(index)
        mean = (
            sum((part.sum(0, dtype=torch.float64) for part, _ in blocks(train, index)), torch.zeros(()))
            / count
        )
        square = sum(((part - mean).square().sum() for part, _ in blocks(train, index)), torch.zeros(()))
        by = (square / (count * train.shape[1])).sqrt()
        return cls(mean.to(train.dtype), torch.where(by > 0, by, 1.0).to(train.dtype))


def blocks(rows: Tensor, index: Tensor | None = None) -> Iterator[tuple[Tensor, slice]]:
    """The rows (N, D), or those of `index`, block by block, and where a block stands among them."""
    count, size = len(rows) if index is None else len(index), max(1, BLOCK // max(rows.shape[1], 1))
    for start in range(0, count, size):
        place = slice(start, min(start + size, count))
        yield rows[place] if index is None else rows[index[place]], place


def of_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy of labels (n,)."""
    return F.cross_entropy(logits, labels, reduction="sum")


def fit(
    train: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    penalty: float,
    scale: Scaling | None = None,
    index: Tensor | None = None,
    loss: Loss = of_classes,
) -> Tensor:
    """Minimise the objective on train (N, D), or its rows `index`, from `start` (C, D + 1) -> same shape.

    Weights and a last column of biases, of features as `scale` makes them.
    """
    solution = start.clone().requires_grad_()
    optimizer = LBFGS(
        [solution], max_iter=ITERATIONS, tolerance_grad=1e-5, history_size=20, line_search_fn="strong_wolfe"
    )
    labels = labels if index is None else labels[index]
    if index is not None and len(index) * train.shape[1] <= BLOCK:
        train, index = train[index], None

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = 0.5 * penalty * solution[:, :-1].square().sum()
        value.backward()
        value = value.detach()
        for part, place in blocks(train, index):
            term = loss(logits_of(part, solution, scale), labels[place]) / len(labels)
            term.backward()
            value += term.detach()
        return value

    optimizer.step(objective)
    return solution.detach()


def logits_of(rows: Tensor, solution: Tensor, scale: Scaling | None = None) -> Tensor:
    """(n, C) of rows (n, D) under a solution (C, D + 1)."""
    weight, bias = solution[:, :-1], solution[:, -1]
    if scale is not None:
        weight = weight / scale.by
        bias = bias - weight @ scale.mean
    return F.linear(rows, weight, bias)


def predict(rows: Tensor, solution: Tensor, scale: Scaling | None = None) -> Tensor:
    """Class scores (Q, C) of rows (Q, D), block by block."""
    return torch.cat([logits_of(part, solution, scale) for part, _ in blocks(rows)])


@dataclass(frozen=True)
class Fitted:
    """One penalty of a path: its solution, and how good it is on the rows that choose."""

    penalty: float
    solution: Tensor
    accuracy: float


def path(
    train: Tensor,
    labels: Tensor,
    penalties: Sequence[float],
    judge: Callable[[Tensor], float],
    *,
    num_classes: int,
    scale: Scaling | None = None,
    index: Tensor | None = None,
    loss: Loss = of_classes,
) -> Fitted:
    """The best of fits with falling penalties, each begun at the one before; of equals the strongest penalty.

    `judge` takes a solution and says how accurate it is on rows that it was not fitted to.
    """
    solution, best = train.new_zeros(num_classes, train.shape[1] + 1), None
    for penalty in penalties:
        solution = fit(train, labels, solution, penalty=penalty, scale=scale, index=index, loss=loss)
        found = Fitted(penalty, solution, judge(solution))
        if best is None or found.accuracy > best.accuracy:
            best = found
    assert best is not None
    return best
