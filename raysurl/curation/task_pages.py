"""What `outliers`, `cluster` and `select` write: lists, and a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysurl.curation.clustering import ImageClusters
from raysurl.curation.given import write_list, write_names
from raysurl.curation.near import by_index
from raysurl.curation.outlying import Outliers
from raysurl.curation.pages import gallery, row_card, short_names, write_page
from raysurl.curation.pictures import Pictures
from raysurl.curation.rows import Embeddings, columns_of
from raysurl.report.page import table

SHOWN = 96  # images of a list
SHOWN_CLUSTERS, SHOWN_MEMBERS = 100, 8


def write_outliers(folder: Path, of: Embeddings, found: Outliers, top: int, how: str) -> list[str]:
    """outliers.csv, .parquet, .json (all images, the farthest first) and page.html; returns what there is to say."""
    order = found.order
    columns = {
        **columns_of(of.table, order),
        "score": found.scores[order],
        "nearest": of.names(found.nearest[order]),
    }
    write_list(pa.table(columns), folder, "outliers")
    pictures = Pictures(of.table, of.about)
    first = order[:top]
    shown = pictures.of(first)
    names = of.names(first)
    captions = [
        (f"{found.scores[row]:.4f}", n)
        for row, n in zip(first.tolist(), short_names(of.table, first), strict=True)
    ]
    quantiles = np.quantile(found.scores, [0.5, 0.9, 0.99, 0.999, 1])
    rows = [
        [name, f"{q:.4f}"]
        for name, q in zip(("half", "90 %", "99 %", "99.9 %", "all"), quantiles, strict=True)
    ]
    parts = [
        ("Scores", table(["Share of the images", "score up to"], rows), ""),
        (
            "Farthest out",
            gallery(first.tolist(), shown, captions),
            f"The first {len(first):,} of {len(of):,} images.",
        ),
    ]
    write_page(folder, "Outliers", f"Images far from their neighbours, {how}.", parts, pictures)
    said = [f"{found.scores[row]:.4f}  {name}" for row, name in zip(first[:10].tolist(), names, strict=False)]
    return [
        *said,
        *by_index(found.recall),
        f"all {len(of):,} images by score: {folder / 'outliers.csv'}; pictures: {folder / 'page.html'}",
    ]


def write_selected(folder: Path, of: Embeddings, chosen: NDArray[np.int64], how: str) -> list[str]:
    """selected.csv, .parquet, .json, selected.txt (names, in order) and page.html; returns what there is to say."""
    write_list(
        pa.table({"rank": np.arange(1, len(chosen) + 1), **columns_of(of.table, chosen)}), folder, "selected"
    )
    left_out = write_names(of.names(chosen), folder, "selected.txt")
    pictures = Pictures(of.table, of.about)
    first = chosen[:SHOWN]
    shown = pictures.of(first)
    captions = [(str(i + 1), name) for i, name in enumerate(short_names(of.table, first))]
    more = f"The first {len(first)} of {len(chosen):,}." if len(first) < len(chosen) else ""
    lead = f"{len(chosen):,} of {len(of):,} images, {how}."
    write_page(
        folder,
        "Images to label",
        lead,
        [("Chosen", gallery(first.tolist(), shown, captions), more)],
        pictures,
    )
    said = [f"{len(chosen):,} of {len(of):,} images chosen, {how}: {folder / 'selected.txt'}"]
    return [*said, *left_out, f"pictures: {folder / 'page.html'}"]


def write_clusters(folder: Path, of: Embeddings, found: ImageClusters, how: str) -> list[str]:
    """clusters.* (a row per image), medoids.* (a row per cluster) and page.html; returns what there is to say."""
    levels = [f"level{level + 2}" for level in range(len(found.labels))] if found.thresholds else ["cluster"]
    columns = columns_of(of.table, np.arange(len(of)))
    for name, labels in zip(levels, found.labels, strict=True):
        columns[name] = labels
    columns["similarity"] = found.cosines[0]
    write_list(pa.table(columns), folder, "clusters")
    medoids = []
    for name, labels, rows in zip(levels, found.labels, found.medoids, strict=True):
        head = {"level": [name] * len(rows), "cluster": np.arange(len(rows))}
        medoids.append(pa.table({**head, "size": np.bincount(labels), **columns_of(of.table, rows)}))
    write_list(pa.concat_tables(medoids), folder, "medoids")
    pictures = Pictures(of.table, of.about)
    parts = []
    # the coarsest first, as a person reads them
    for level in reversed(range(len(levels))):
        cards, note = _cluster_cards(of, found, level, pictures)
        title = (
            "Clusters" if not found.thresholds else f"Level {level + 2}: cosine {found.thresholds[level]:.3f}"
        )
        parts.append((title, cards, note))
    counts = " and ".join(f"{len(rows):,}" for rows in found.medoids)
    lead = (
        f"{counts} clusters of {len(of):,} images, {how}. Framed: the medoid, the image nearest to the mean."
    )
    write_page(folder, "Clusters", lead, parts, pictures)
    files = f"{folder / 'clusters.csv'}, medoids: {folder / 'medoids.csv'}"
    return [f"{counts} clusters of {len(of):,} images, {how}: {files}; pictures: {folder / 'page.html'}"]


def _cluster_cards(of: Embeddings, found: ImageClusters, level: int, pictures: Pictures) -> tuple[str, str]:
    labels, cosines, medoids = found.labels[level], found.cosines[level], found.medoids[level]
    sizes = np.bincount(labels)
    order = np.lexsort((-cosines, labels))
    begins = np.append(0, np.cumsum(sizes))
    cards = ""
    for number in range(min(len(medoids), SHOWN_CLUSTERS)):
        members = order[begins[number] : begins[number + 1]]
        # from the nearest to the mean to the farthest
        some = members[
            np.unique(np.linspace(0, len(members) - 1, min(SHOWN_MEMBERS, len(members))).astype(np.int64))
        ]
        rows = [int(medoids[number]), *(r for r in some.tolist() if r != medoids[number])]
        shown = pictures.of(np.array(rows))
        names = short_names(of.table, np.array(rows))
        captions = [(f"{cosines[r]:.3f}", n) for r, n in zip(rows, names, strict=True)]
        cards += row_card(
            f"{number}: {sizes[number]:,} images",
            _classes(of, members),
            gallery(rows, shown, captions, int(medoids[number])),
        )
    more = f"The {SHOWN_CLUSTERS} largest of {len(medoids):,}. " if len(medoids) > SHOWN_CLUSTERS else ""
    return cards, f"{more}From the image nearest to the mean to the farthest, with the cosine to it."


def _classes(of: Embeddings, members: NDArray[np.int64]) -> str:
    """The classes that most of the members have, where they have labels."""
    labels = np.asarray(of.table["label"].take(pa.array(members)).to_numpy(), np.int64)
    known = labels[labels >= 0]
    if not len(known):
        return ""
    called = of.about.get("class_names") or {}
    values, counts = np.unique(known, return_counts=True)
    first = np.argsort(-counts, kind="stable")[:3]
    return ", ".join(f"{called.get(str(values[i]), values[i])} {counts[i] / len(known):.0%}" for i in first)
