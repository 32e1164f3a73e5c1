"""Which classes are taken for which: counts of the test images by class and by what kNN says, in the data's own names.

Letters: C classes.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysurl.evaluate import Features, knn_classify
from raysurl.report import page
from raysurl.report.figures import load
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
    """The matrix, where it can be taken in at a glance, and the pairs that are confused most."""
    counts = load(run.directory / "samples" / "confusion.npz").get("counts")
    if (
        counts is None
        or counts.ndim != 2
        or counts.shape[0] != counts.shape[1]
        or counts.dtype.kind not in "iu"
    ):
        return ""
    return (_matrix(run, counts) if len(counts) <= WHOLE else "") + _pairs(run, counts)


def _matrix(run: StoredRun, counts: NDArray[np.int64]) -> str:
    names = [run.class_name(i) for i in range(len(counts))]
    head = "".join(f"<th class=n>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td class='n{' strong' if i == j else ''}'>{count:,}</td>" for j, count in enumerate(row))
        + "</tr>"
        for i, (name, row) in enumerate(zip(names, counts.tolist(), strict=True))
    )
    return f'<div class="card scroll"><table><tr><th>is \\ taken for</th>{head}</tr>{rows}</table></div>'


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
