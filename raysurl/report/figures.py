"""The parts of a report that are looked at: curves, views, nearest neighbours and distances."""

from __future__ import annotations

import zipfile
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from raysurl.evaluate import prefixed
from raysurl.report import page
from raysurl.report.charts import Level, Series, line_chart
from raysurl.report.run import BASELINES, NOTES, StoredRun, is_of_clusters, is_percent, is_share, label
from raysurl.report.verdict import headline_of

MAX_SAMPLES = 10  # columns of the table of views
MOST_BYTES = 2**28  # of the arrays of one file; a run writes a few megabytes
SPEED = ("train/lr", "speed/images_per_s", "speed/data_wait")

Arrays = dict[str, np.ndarray[Any, Any]]


# -------------------------------------------------------------------- curves


def curves(run: StoredRun) -> str:
    """Loss and accuracy large; loss terms, health and speed small."""
    large = line_chart(
        "Training loss",
        [Series.of("loss", run.points(run.steps, "train/loss"), smooth=True)],
        x_name=run.x_name,
        note="per step; the bold line is a moving average" if len(run.steps) >= 40 else "per step",
        large=True,
    )
    large += _accuracy(run)
    known = ("health/", "speed/", "eval/", "train/loss", "train/lr")
    terms = [n for n in run.names(run.steps) if "/" in n and not n.startswith(known)]
    health = [n for n in run.names(run.steps) if n.startswith("health/")]
    probed = [n for n in run.names(run.evaluations) if n.startswith("health/")]
    probed = [n for n in probed if not is_share(n) and not is_of_clusters(n)]
    return "".join(
        (
            _grid("", large, "charts two"),
            _grid("Terms that the method logs", "".join(_step_chart(run, n) for n in terms)),
            _grid("Health of the embeddings in training", "".join(_step_chart(run, n) for n in health)),
            _grid("Health of the encoder's features", "".join(_evaluation_chart(run, n) for n in probed)),
            _grid("Pace", "".join(_step_chart(run, n) for n in SPEED)),
        )
    )


def _grid(title: str, charts: str, kind: str = "charts") -> str:
    if not charts:
        return ""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'{head}<div class="{kind}">{charts}</div>'


def _accuracy(run: StoredRun) -> str:
    names = [n for n in run.names(run.evaluations) if n.startswith("eval/") and is_percent(n)]
    names = [n for n in names if not _is_baseline(n)]
    series = [Series.of(label(n), run.points(run.evaluations, n)) for n in names]
    series = [s for s in series if len(s.x) > 1][:6]  # what is measured only once is no curve
    name = headline_of(run)
    levels = [
        Level(words.lower(), run.final[metric])
        for prefix, words in BASELINES.items()
        if name and (metric := prefixed(name, prefix)) in run.final
    ]
    note = (
        "on test images that were trained on without labels" if run.saw_test_images else "on held-out images"
    )
    note += f"; dashed: {label(name)}, without training" if levels and name else ""
    return line_chart(
        "Accuracy",
        series,
        x_name=run.x_name,
        unit=" %",
        note=note,
        levels=levels if series else (),
        large=True,
    )


def _is_baseline(name: str) -> bool:
    return any(name.partition("/")[2].startswith(f"{prefix}_") for prefix in BASELINES)


def _step_chart(run: StoredRun, name: str) -> str:
    return _small(name, run.points(run.steps, name), run.x_name, smooth=name != "train/lr")


def _evaluation_chart(run: StoredRun, name: str) -> str:
    points = run.points(run.evaluations, name)
    return "" if len(points) < 2 or _is_baseline(name) else _small(name, points, run.x_name, smooth=False)


def _small(name: str, points: list[tuple[float, float]], x_name: str, *, smooth: bool) -> str:
    share = is_share(name)
    title = label(name).removeprefix("train/")
    series = Series.of(title, [(x, 100 * y if share else y) for x, y in points], smooth=smooth)
    return line_chart(title, [series], x_name=x_name, unit=" %" if share else "", note=NOTES.get(name, ""))


# -------------------------------------------------------------------- samples


def views(run: StoredRun) -> str:
    """A column per image: the original, and below it each view that the method saw of it."""
    arrays = load(run.directory / "samples" / "views.npz")
    shown = {n: a for n, a in arrays.items() if a.ndim == 4 and a.shape[-1] == 3 and a.dtype == np.uint8}
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(
            f"<td>{page.image(x, f'{name}, image {i}')}</td>" for i, x in enumerate(shown[name][:MAX_SAMPLES])
        )
        + "</tr>"
        for name in sorted(shown, key=lambda n: n != "original")
    )
    return f'<div class="card scroll"><table class="images">{rows}</table></div>' if rows else ""


def neighbours(run: StoredRun) -> str:
    """Rows of an image and its nearest neighbours, framed by whether the label agrees."""
    return _near(
        run, load(run.directory / "samples" / "neighbours.npz"), "Each row: an image, then the images"
    )


def disturbed(run: StoredRun) -> str:
    """The same of test images, plain and augmented."""
    arrays = load(run.directory / "samples" / "disturbed.npz")
    return _near(run, arrays, "Each row: a test image, plain or augmented, then the training images")


def _near(run: StoredRun, arrays: Arrays, note: str) -> str:
    images, labels, similarity = (arrays.get(n) for n in ("images", "labels", "similarity"))
    if images is None or images.ndim != 5 or images.dtype != np.uint8 or images.shape[1] < 2:
        return ""
    shape, names = images.shape[:2], arrays.get("rows")
    if labels is None or labels.shape != shape:
        labels = np.full(shape, -1)
    if names is None or names.shape != shape[:1] or names.dtype.kind != "U":
        names = np.full(shape[0], "")
    cosines = similarity if similarity is not None and similarity.shape == shape else np.full(shape, np.nan)
    rows = "".join(
        f"<tr>{f'<th>{escape(str(names[r]))}</th>' if names.any() else ''}"
        + "".join(_neighbour(run, images[r], labels[r], cosines[r], c) for c in range(shape[1]))
        + "</tr>"
        for r in range(shape[0])
    )
    empty = "<td></td>" * (2 if names.any() else 1)
    head = f"<tr>{empty}{''.join(f'<td class=soft>{i}</td>' for i in range(1, shape[1]))}</tr>"
    note += " most like it, with their cosine."
    if (labels >= 0).any():
        note += " ✓ and a solid green frame: the same label; ✗ and a dashed red one: another."
    return f'<p class="soft">{note}</p><div class="card scroll"><table class="images near">{head}{rows}</table></div>'


def distances(run: StoredRun) -> str:
    """Histograms of the distances of pairs of one class and of different classes, in each space."""
    arrays = load(run.directory / "samples" / "distances.npz")
    charts = ""
    for name, words in (("encoder", "The encoder's features"), ("pixels", "Raw pixels")):
        counts = arrays.get(name)
        if counts is None or counts.ndim != 2 or len(counts) != 2 or counts.dtype.kind not in "iu":
            continue
        places = (np.arange(counts.shape[1]) + 0.5) * 2 / max(counts.shape[1], 1)
        shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        series = [
            Series.of(kind, list(zip(places.tolist(), row.tolist(), strict=True)))
            for kind, row in zip(("same class", "different classes"), shares, strict=True)
        ]
        charts += line_chart(words, series, x_name="cosine distance", unit=" %", note="share of the pairs")
    return _grid("", charts, "charts two")


def _neighbour(
    run: StoredRun,
    images: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    cosines: np.ndarray[Any, Any],
    column: int,
) -> str:
    own, query = int(labels[column]), int(labels[0])
    known = own >= 0 and query >= 0
    kind, mark = ("good", "✓ ") if own == query else ("bad", "✗ ")
    if column == 0 or not known:
        kind, mark = "", ""
    name = run.class_name(own) if own >= 0 else ""
    cosine = f"{cosines[column]:.2f}" if column and np.isfinite(cosines[column]) else ""
    caption = "<br>".join(part for part in (f"{mark}{escape(name)}", cosine) if part)
    words = f"{'query' if column == 0 else f'neighbour {column}'} {name}"
    return f'<td class="{kind}">{page.image(images[column], words)}<small>{caption}</small></td>'


def load(path: Path) -> Arrays:
    """The arrays of a file of `samples/`, by name; none of a file that is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(about.file_size for about in archive.infolist()) > MOST_BYTES:
                return {}
        with np.load(path, allow_pickle=False) as file:
            return {str(name): file[name] for name in file.files}
    except Exception:  # NumPy and zipfile raise a dozen unrelated types on damaged files
        return {}
