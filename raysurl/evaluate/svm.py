"""Linear support vector machines on images that show several classes, on all images and on a few of each class.

Goyal et al. 2019 ("Scaling and Benchmarking Self-Supervised Visual Representation Learning") and, for few images, PCL
(Li et al. 2021), whose code ReSSL's Table 11 follows: features of unit length, a machine for each class against all
others, squared hinge, positives of twice the weight. For k images of a class, k that show it are drawn for each class,
and all that are drawn for any class train every machine; of `eval.svm_draws` such draws the mean is yielded.

The cost C of each machine is that of `eval.svm_costs` which has the best average precision in a cross-validation of
three folds, on the images that it may see; the test images play no part. PCL's code takes C = 0.5 throughout.
The solver is liblinear's for the primal problem, whose optimum is that of their dual one, and which draws no numbers.

Letters: n images, Q test images, D features, T classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from torch import Tensor

from raysurl import streams
from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features
from raysurl.evaluate.precision import Ranking, precision_names, precisions
from raysurl.intervals import Measured, over_seeds
from raysurl.recipe import Evaluation

NEEDS = frozenset({"tags"})
OF_PIXELS = False
FOLDS = 3
POSITIVE = 2.0  # weight of a positive
ITERATIONS = 2000

Rows = NDArray[np.float64]
Tags = NDArray[np.int8]


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """`eval/svm_map` and `eval/svm_map11` of all train images in percent, `eval/svm4_map` of four of each class."""
    assert features.tags is not None
    train, test = unit(features.train), unit(features.test)
    tags, truth = features.tags[0].cpu().numpy(), features.tags[1]
    for k in settings.svm_shots:
        found = []
        for draw in range(settings.svm_draws):
            index = drawn(tags, k, seed=seed, draw=draw)
            scores = scores_of(train[index], tags[index], test, settings.svm_costs)
            found.append(Ranking(torch.from_numpy(scores), truth).mean("map"))
        yield f"eval/svm{k}_map", Measured(float(np.mean(found)), over_seeds(found))
    scores = scores_of(train, tags, test, settings.svm_costs)
    yield from precisions("eval/svm", torch.from_numpy(scores), truth, seed=seed)


def names(settings: Evaluation, division: Division) -> list[str]:
    return [*(f"eval/svm{k}_map" for k in settings.svm_shots), *precision_names("eval/svm")]


def unit(rows: Tensor) -> Rows:
    """Rows (n, D) of unit length; what is zero stays."""
    values = rows.double().cpu().numpy()
    result: Rows = values / (np.linalg.norm(values, axis=1, keepdims=True) + 1e-5)
    return result


def drawn(tags: Tags, k: int, *, seed: int, draw: int) -> NDArray[np.int64]:
    """Rows of tags (n, T): k that show each class, or all where there are fewer; one may stand for several classes."""
    stream = streams.numpy_stream(seed, "low shot", k, draw)
    members = (np.flatnonzero(column == 1) for column in tags.T)
    return np.concatenate([stream.permutation(of_class)[:k] for of_class in members])


def scores_of(train: Rows, tags: Tags, test: Rows, costs: Sequence[float]) -> Rows:
    """(Q, T) of a machine for each class; 0 for a class of which train (n, D) shows either no image or no other."""
    if len(train) < train.shape[1]:
        # weights lie in the span of the train rows: as many columns as there are rows, and the same machine
        basis = np.linalg.svd(train, full_matrices=False)[2].T
        train, test = train @ basis, test @ basis
    jobs = (delayed(_score)(train, column, test, costs) for column in tags.T)
    # one class a thread: the solver holds no lock
    columns = Parallel(n_jobs=torch.get_num_threads(), prefer="threads")(jobs)
    return np.stack(columns, axis=1)


def _score(train: Rows, tags: Tags, test: Rows, costs: Sequence[float]) -> Rows:
    judged = tags >= 0
    rows, truth = train[judged], np.where(tags[judged] == 1, 1, -1)
    if len(np.unique(truth)) < 2:
        return np.zeros(len(test))
    cost = costs[0] if len(costs) == 1 else best_cost(rows, truth, costs)
    return scored(machine(rows, truth, cost), test)


def best_cost(rows: Rows, truth: NDArray[np.int64], costs: Sequence[float]) -> float:
    """The cost of the best mean average precision over folds, the smallest of equals; with too few images of a kind for
    three folds there are two, or, with a single one, the middle of the costs is taken."""
    folds = min(FOLDS, int((truth == 1).sum()), int((truth == -1).sum()))
    ascending = sorted(costs)
    if folds < 2:
        return ascending[len(ascending) // 2]
    parts = list(StratifiedKFold(folds).split(rows, truth))

    def judged(cost: float) -> float:
        scores = ((scored(machine(rows[kept], truth[kept], cost), rows[held]), held) for kept, held in parts)
        return float(np.mean([average_precision(truth[held] == 1, found) for found, held in scores]))

    return max(ascending, key=judged)


def scored(made: LinearSVC, rows: Rows) -> Rows:
    """(n,) of rows (n, D): its decision function, without looking again at what they are."""
    result: Rows = rows @ made.coef_[0] + made.intercept_[0]
    return result


def average_precision(right: NDArray[np.bool_], scores: Rows) -> float:
    """Σ (recall of a threshold − that of the one before) · precision, as scikit-learn has it, of right (n,) and scores
    (n,): a tenth of its time, which is that of a small machine."""
    order = np.argsort(-scores, kind="stable")
    found, ranked = np.cumsum(right[order]), scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # equal scores are one threshold
    steps = np.diff(found[ends], prepend=0) / max(found[-1], 1)
    return float((steps * found[ends] / (ends + 1)).sum())


def machine(rows: Rows, truth: NDArray[np.int64], cost: float) -> LinearSVC:
    """Fitted to rows (n, D) and truth (n,) in {1, −1}."""
    made = LinearSVC(C=cost, class_weight={1: POSITIVE, -1: 1.0}, dual=False, tol=1e-4, max_iter=ITERATIONS)
    with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.simplefilter("ignore", ConvergenceWarning)  # of costs that are far too high, and not chosen
        return made.fit(rows, truth)
