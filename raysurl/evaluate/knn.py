"""Weighted k-nearest-neighbour classification (Wu et al. 2018, "Unsupervised Feature Learning via
Non-Parametric Instance Discrimination", section 3.4; the protocol of Super-AND).

A query's score for class c is Σ over its k nearest bank rows of exp(cosine/τ)·1[label = c]; the class with
the highest score wins. The authors' code also reports the top-5 accuracy and so fails with fewer than five
classes or a bank smaller than k; here only the winner is formed and k is cut to the bank's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from raysurl.errors import InputError
from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features, check_labels
from raysurl.evaluate.nearest import nearest_blocks
from raysurl.evaluate.scores import top1
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels"})
OF_PIXELS = True


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Top-1 accuracy in percent for each k of `settings.knn_k`: `eval/knn_top1` is k = 200, others name k."""
    predictions = classify(
        features.train,
        features.train_labels,
        features.test,
        ks=settings.knn_k,
        tau=settings.knn_tau,
        num_classes=features.num_classes,
    )
    for name, predicted in zip(names(settings), predictions, strict=True):
        yield name, top1(predicted, features.test_labels)


def names(settings: Evaluation, division: Division | None = None) -> list[str]:
    return [f"eval/{'knn' if k == 200 else f'knn{k}'}_top1" for k in settings.knn_k]


def knn_classify(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: int = 200, tau: float = 0.1, num_classes: int
) -> Tensor:
    """Classify queries (Q, D) by the bank (N, D) with labels (N,) int64 -> (Q,) int64.

    Rows are normalised here, a block at a time (see raysurl.evaluate.nearest). Ties are broken the same way on
    every device: among equal similarities the lower bank index is nearer, among equal class scores the lower
    class wins. k above N means N. Raises InputError for an empty bank, shapes that disagree, a value that is not
    finite, a label outside [0, num_classes), k < 1 or τ ≤ 0.
    """
    return classify(bank, bank_labels, queries, ks=(k,), tau=tau, num_classes=num_classes)[0]


def classify(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, ks: Sequence[int], tau: float, num_classes: int
) -> list[Tensor]:
    """`knn_classify` for several k from one search: predictions (Q,) for each."""
    _check(bank, bank_labels, queries, ks, tau, num_classes)
    predictions = [[queries.new_zeros(0, dtype=torch.int64)] for _ in ks]
    for similarity, index in nearest_blocks(bank, queries, min(max(ks), len(bank))):
        for found, k in zip(predictions, ks, strict=True):
            found.append(vote(similarity[:, :k], bank_labels[index[:, :k]].long(), tau, num_classes))
    return [torch.cat(found) for found in predictions]


def _check(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, ks: Sequence[int], tau: float, num_classes: int
) -> None:
    if not len(bank) or bank.ndim != 2 or bank_labels.shape != bank.shape[:1]:
        raise InputError(
            f"the kNN bank of shape {tuple(bank.shape)} with labels of shape {tuple(bank_labels.shape)} must"
            " be (N, D) and (N,) with at least one row"
        )
    if queries.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise InputError(f"kNN queries of shape {tuple(queries.shape)} must be (Q, {bank.shape[1]})")
    if not ks or min(ks) < 1 or tau <= 0:
        raise InputError(f"kNN needs k ≥ 1 and tau > 0, not k={', '.join(map(str, ks))} and tau={tau}")
    check_labels(bank_labels, num_classes, "kNN bank labels")


def vote(similarity: Tensor, labels: Tensor, tau: float, num_classes: int) -> Tensor:
    """Similarities and labels (Q, k) of the neighbours -> winning class (Q,).

    One neighbour rank at a time: no two additions hit one cell, so the sum's order, and with it the result,
    is fixed on GPUs too. Weights are relative to the nearest neighbour's, so a small τ cannot overflow.
    """
    weights = ((similarity - similarity[:, :1]) / tau).exp()
    scores = similarity.new_zeros(len(similarity), num_classes)
    for rank in range(similarity.shape[1]):
        scores.scatter_add_(1, labels[:, rank : rank + 1], weights[:, rank : rank + 1])
    return scores.argmax(1)
