"""Node classification: logistic regression on the embeddings of some nodes, accuracy on others.

On the data set's own split (the public one of Planetoid: 20 nodes a class, 500 for validation, 1,000 for the test),
and on `eval.random_splits` random ones of that kind, as mean and standard deviation. The embedding saw all nodes and
no label. The penalty of the regression is chosen on the validation nodes; the test nodes play no part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

import numpy as np
import torch
from torch import Tensor

from raysurl import streams
from raysurl.data.planetoid import NUM_VALIDATION, TEST, TRAIN, VALIDATION
from raysurl.errors import InputError
from raysurl.evaluate import logistic
from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features, NodeFeatures
from raysurl.evaluate.lbfgs import PENALTIES
from raysurl.evaluate.scores import top1
from raysurl.intervals import Measured, over_seeds
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels", "nodes"})
OF_PIXELS = True
PER_CLASS = 20
NUM_TEST = 1000


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """`eval/linear_top1` in percent: on the own split where there is one, else the mean over random ones."""
    nodes = features.nodes
    if nodes is None:
        return
    accuracies = [
        accuracy(nodes, random_split(nodes.labels, seed=seed, draw=draw))[1]
        for draw in range(settings.random_splits)
    ]
    mean, std = Measured(float(np.mean(accuracies)), over_seeds(accuracies)), float(np.std(accuracies))
    if nodes.split is None:
        yield from (("eval/linear_top1", mean), ("eval/linear_top1_std", std))
        return
    validation, test = accuracy(nodes, nodes.split)
    yield from (("eval/linear_top1", test), ("eval/linear_validation_top1", validation))
    yield from (("eval/linear_random_top1", mean), ("eval/linear_random_top1_std", std))


def names(settings: Evaluation, division: Division) -> list[str]:
    if division.split is None:
        return ["eval/linear_top1", "eval/linear_top1_std"]
    more = ("linear_validation_top1", "linear_random_top1", "linear_random_top1_std")
    return ["eval/linear_top1", *(f"eval/{name}" for name in more)]


def check(division: Division, settings: Evaluation) -> None:
    assert division.labels is not None
    known = division.labels >= 0
    labels, split = torch.from_numpy(division.labels[known]), division.split
    parts = random_split(labels), None if split is None else torch.from_numpy(split[known])
    for part in parts:
        if part is not None:
            check_parts(labels, part)


def check_parts(labels: Tensor, split: Tensor) -> None:
    """Raises InputError for labels (n,) that a regression cannot be fitted to and judged on."""
    if len(labels[split == TRAIN].unique()) < 2 or not all((split == p).any() for p in (VALIDATION, TEST)):
        raise InputError(
            f"the nodes protocol needs two classes among the train nodes, and validation and test nodes; {len(labels)}"
            f" labelled nodes of {len(labels.unique())} classes do not give them: leave nodes out of eval.protocols"
        )


def accuracy(nodes: NodeFeatures, split: Tensor) -> tuple[Measured, Measured]:
    """Percent of the validation and of the test nodes that the best regression on the train nodes gets right.

    Its weights lie in the span of the train rows, so that all rows are first expressed in that: as many columns as
    there are train nodes at most, and the same solution.
    """
    known = nodes.labels >= 0
    check_parts(nodes.labels[known], split[known])
    rows = {part: nodes.features[(split == part) & known].double() for part in (TRAIN, VALIDATION, TEST)}
    labels = {part: nodes.labels[(split == part) & known] for part in (TRAIN, VALIDATION, TEST)}
    mean, by = (value.double() for value in astuple(logistic.Scaling.of(rows[TRAIN])))
    standard = {part: (x - mean) / by for part, x in rows.items()}
    basis = torch.linalg.svd(standard[TRAIN], full_matrices=False)[2].T
    reduced = {part: x @ basis for part, x in standard.items()}

    def right(solution: Tensor, part: int) -> Measured:
        return top1(logistic.predict(reduced[part], solution).argmax(1), labels[part])

    best = logistic.path(
        reduced[TRAIN],
        labels[TRAIN],
        PENALTIES,
        lambda solution: right(solution, VALIDATION),
        num_classes=int(nodes.labels.max()) + 1,
    )
    return right(best.solution, VALIDATION), right(best.solution, TEST)


def random_split(labels: Tensor, *, seed: int = 0, draw: int = 0) -> Tensor:
    """(N,) TRAIN for 20 nodes of each class, or half of a small one; VALIDATION and TEST share what is left.

    At most 500 are for validation and 1,000 for the test. Raises InputError for fewer than two nodes to spare.
    """
    values = labels.cpu().numpy()
    random = streams.numpy_stream(seed, "node split", draw)
    split = np.zeros(len(values), np.uint8)
    for label in np.unique(values[values >= 0]):
        members = random.permutation(np.flatnonzero(values == label))
        split[members[: min(PER_CLASS, len(members) // 2)]] = TRAIN
    rest = random.permutation(np.flatnonzero((values >= 0) & (split == 0)))
    if len(rest) < 2 or not (split == TRAIN).any():
        raise InputError(f"{int((values >= 0).sum())} labelled nodes are too few to divide")
    held_out = min(NUM_VALIDATION, len(rest) // 3 or 1)
    split[rest[:held_out]], split[rest[held_out : held_out + NUM_TEST]] = VALIDATION, TEST
    return torch.from_numpy(split).to(labels.device)
