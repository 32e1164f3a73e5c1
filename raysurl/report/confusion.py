"""Which classes are taken for which: counts of the test images by class and by what kNN says, in the data's own names.

Letters: C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysurl.evaluate import Features, knn_classify
from raysurl.intervals import wilson
from raysurl.report import page
from raysurl.report.charts import Bar, bar_chart, matrix, matrix_height
from raysurl.report.figures import load
from raysurl.report.plotted import words
from raysurl.report.run import StoredRun

K = 20  # neighbours that vote; fewer than most classes have images
TAU = 0.1
MOST_CLASSES = 2000  # of which counts are kept
WHOLE, PAIRS = 20, 12  # classes of which the whole matrix is shown, and confused pairs
NOTE = f"Test images by class and by what kNN (k = {K}, last epoch) takes them for."


def save(run_dir: Path, features: Features) -> None:
    """`samples/confusion.npz`: `counts` (C, C), rows the true class, columns the predicted one."""
    if not features.has_labels or features.num_classes > MOST_CLASSES:
        return
    known, classes = features.labelled(), features.num_classes
    found = knn_classify(known.train, known.train_labels, known.test, k=K, tau=TAU, num_classes=classes)
    pairs = known.test_labels.cpu().numpy() * classes + found.cpu().numpy()
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    (run_dir / "samples").mkdir(exist_ok=True)
    np.savez_compressed(run_dir / "samples" / "confusion.npz", counts=counts)


def section(run: StoredRun) -> str:
    """The accuracy of each class, the matrix where it can be taken in at a glance, and the pairs confused most."""
    counts = load(run.directory / "samples" / "confusion.npz").get("counts")
    if (
        counts is None
        or counts.ndim != 2
        or counts.shape[0] != counts.shape[1]
        or counts.dtype.kind not in "iu"
    ):
        return ""
    whole = _matrix(run, counts) if len(counts) <= WHOLE else ""
    return f'<div class="charts two">{_by_class(run, counts)}{whole}</div>{_pairs(run, counts)}'


def _by_class(run: StoredRun, counts: NDArray[np.int64]) -> str:
    """Of many classes the worst and the best."""
    bars = []
    for i, of in enumerate(counts.sum(axis=1).tolist()):
        if of:
            right = int(counts[i, i])
            low, high = wilson(right, of)
            bars.append(Bar(run.class_name(i), 100 * right / of, (100 * low, 100 * high), strong=True))
    bars.sort(key=lambda bar: -bar.value)
    note = "of the class's test images; whiskers: interval of 95 %"
    if len(bars) > WHOLE:
        bars = [*bars[: WHOLE // 2], *bars[-WHOLE // 2 :]]
        note += f"; the {WHOLE // 2} best and the {WHOLE // 2} worst classes"
    height = matrix_height(len(counts)) if len(counts) <= WHOLE else None
    return bar_chart("Accuracy of each class", bars, unit=" %", note=note, most=100, height=height)


def _matrix(run: StoredRun, counts: NDArray[np.int64]) -> str:
    names = [run.class_name(i) for i in range(len(counts))]
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [[f"{count:,}" if count else "" for count in row] for row in counts.tolist()]
    hovers = [
        [
            f"{words(is_)} taken for {words(for_)}: {counts[i, j]:,} images, {shares[i, j]:.1f} % of the class"
            for j, for_ in enumerate(names)
        ]
        for i, is_ in enumerate(names)
    ]
    note = "test images; the colour is the share of their class"
    titles = ("is", "taken for")
    return matrix("Confusion", shares, names, names, titles=titles, texts=texts, hovers=hovers, note=note)


def _pairs(run: StoredRun, counts: NDArray[np.int64]) -> str:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    rows = [
        (
            run.class_name(int(i)),
            run.class_name(int(j)),
            f"{wrong[i, j]:,}",
            f"{wrong[i, j] / counts[i].sum():.0%}",
        )
        for i, j in zip(*np.unravel_index(order, counts.shape), strict=True)
        if wrong[i, j]
    ]
    return page.table(["class", "taken for", "images", "of the class"], rows) if rows else ""
