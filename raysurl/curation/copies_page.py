"""What `duplicates` and `leaks` write: lists, and a page with the pairs from which a threshold can be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysurl.curation.copies import Duplicates, Leaks
from raysurl.curation.given import write_list, write_names
from raysurl.curation.near import by_index
from raysurl.curation.pages import Caption, gallery, pair_cards, row_card, short_names, write_page
from raysurl.curation.pictures import Pictures
from raysurl.curation.rows import Embeddings, columns_of
from raysurl.report.page import table

SHOWN_GROUPS, SHOWN_MEMBERS = 24, 12
PAIRS_NOTE = (
    "The pairs that are nearest to it on both sides, exact copies left out, the most alike first. Where those below are"
    " still copies, lower it; where those above are not, raise it."
)


def write_duplicates(folder: Path, of: Embeddings, found: Duplicates) -> list[str]:
    """duplicates.csv, .parquet, .json, delete.txt and page.html; returns what there is to say."""
    members = np.flatnonzero(found.group >= 0)
    order = members[np.lexsort((members, ~found.keep[members], found.group[members]))]
    columns = {
        "group": found.group[order],
        **columns_of(of.table, order),
        "keep": found.keep[order],
        "exact": found.exact[order],
        "similarity": found.similarity[order],
    }
    write_list(pa.table(columns), folder, "duplicates")
    left_out = write_names(of.names(found.drop), folder, "delete.txt")
    _duplicates_page(folder, of, found)
    exact = int(found.exact.sum())
    said = [
        f"{found.groups:,} groups of copies hold {len(order):,} of {len(of):,} images ({exact:,} have an exact copy);"
        f" {len(found.drop):,} can go: {folder / 'delete.txt'}"
    ]
    return [*said, *_caveats(found), *left_out, f"pairs at the threshold: {folder / 'page.html'}"]


def _caveats(found: Duplicates | Leaks) -> list[str]:
    said = []
    if not found.pixels:
        said.append(
            "the embeddings hold no digests of pixels, so that exact copies are not told apart from near ones"
        )
    return [*said, *by_index(found.recall)]


def _duplicates_page(folder: Path, of: Embeddings, found: Duplicates) -> None:
    pictures = Pictures(of.table, of.about)
    sizes = np.bincount(found.group[found.group >= 0], minlength=found.groups)
    largest = np.argsort(-sizes, kind="stable")[:SHOWN_GROUPS]
    groups = [_members(found, int(g)) for g in largest]
    shown = pictures.of(np.concatenate([found.pairs.ravel(), *groups]).astype(np.int64))
    cards = ""
    for g, rows in zip(largest.tolist(), groups, strict=True):
        captions = [_caption(of, found, row) for row in rows.tolist()]
        more = f", {SHOWN_MEMBERS} of them here" if sizes[g] > SHOWN_MEMBERS else ""
        kept = next(row for row in rows.tolist() if found.keep[row])
        title, note = (
            f"Group {g}: {sizes[g]} images{more}",
            f"keeps {short_names(of.table, np.array([kept]))[0]}",
        )
        cards += row_card(title, note, gallery(rows.tolist(), shown, captions, kept))
    lead = (
        f"{found.groups:,} groups of copies hold {int(sizes.sum()):,} of {len(of):,} images;"
        f" {len(found.drop):,} can go so that one of each group stays. Threshold {found.threshold:g}."
    )
    more = f" The {SHOWN_GROUPS} largest of {found.groups:,}." if found.groups > SHOWN_GROUPS else ""
    note = f"Framed: what is kept, the largest image of the group or the first of these.{more}"
    sides = (shown, _named(of))
    parts = [
        (
            "Copies by threshold",
            _steps(found, len(of)),
            "Images with an exact copy, or a near one by that threshold.",
        ),
        (
            f"Pairs at the threshold {found.threshold:g}",
            _pairs(found.pairs, found.cosines, found.threshold, (sides, sides)),
            PAIRS_NOTE,
        ),
        ("Groups", cards, note),
    ]
    write_page(
        folder,
        "Copies",
        " ".join([lead, *(f"{s[0].upper()}{s[1:]}." for s in _caveats(found))]),
        parts,
        pictures,
    )


def _members(found: Duplicates, group: int) -> NDArray[np.int64]:
    rows = np.flatnonzero(found.group == group)
    return rows[np.lexsort((rows, -found.similarity[rows], ~found.keep[rows]))][:SHOWN_MEMBERS]


def _caption(of: Embeddings, found: Duplicates, row: int) -> Caption:
    kind = (
        "kept" if found.keep[row] else f"{found.similarity[row]:.4f}{', exact' if found.exact[row] else ''}"
    )
    return kind, short_names(of.table, np.array([row]))[0]


def _named(of: Embeddings) -> Any:
    return lambda row: short_names(of.table, np.array([row]))[0]


def _pairs(pairs: Any, cosines: Any, threshold: float, sides: Any) -> str:
    titles = [f"{c:.4f}{'' if c >= threshold - 1e-6 else ', below'}" for c in cosines.tolist()]
    return pair_cards(pairs, titles, sides)


def _steps(found: Duplicates | Leaks, count: int) -> str:
    rows = [[f"{step:g}", f"{many:,}", f"{many / count:.2%}"] for step, many in found.steps.items()]
    return table(["Threshold", "Images with a copy", "Share"], rows)


# -------------------------------------------------------------------- across a split


def write_leaks(folder: Path, train: Embeddings, test: Embeddings, found: Leaks) -> list[str]:
    """leaks.csv, .parquet, .json, test.txt and page.html; returns what there is to say."""
    of_test, of_train = found.pairs.T if len(found.pairs) else np.zeros((2, 0), np.int64)
    columns: Mapping[str, Any] = {
        **columns_of(test.table, of_test, "test_"),
        **columns_of(train.table, of_train, "train_"),
        "exact": found.exact,
        "similarity": found.cosines,
    }
    write_list(pa.table(columns), folder, "leaks")
    left_out = write_names(test.names(found.leaked), folder, "test.txt")
    _leaks_page(folder, train, test, found)
    exact = len(np.unique(found.pairs[found.exact, 0]))
    said = [
        f"{len(found.leaked):,} of {len(test):,} test images have a copy among {len(train):,} training images"
        f" ({exact:,} an exact one): {folder / 'test.txt'}"
    ]
    return [*said, *_caveats(found), *left_out, f"pairs: {folder / 'page.html'}"]


def _leaks_page(folder: Path, train: Embeddings, test: Embeddings, found: Leaks) -> None:
    seen_train, seen_test = Pictures(train.table, train.about), Pictures(test.table, test.about)
    some = slice(2 * SHOWN_GROUPS)
    listed, cosines, exact = found.pairs[some], found.cosines[some], found.exact[some]
    both = np.concatenate([listed, found.around])
    of_test, of_train = seen_test.of(both[:, 0]), seen_train.of(both[:, 1])
    sides = ((of_test, _named(test)), (of_train, _named(train)))
    titles = [
        f"{c:.4f}{', exact' if e else ''}" for c, e in zip(cosines.tolist(), exact.tolist(), strict=True)
    ]
    lead = (
        f"{len(found.leaked):,} of {len(test):,} test images have a copy among {len(train):,} training images."
        f" Threshold {found.threshold:g}."
    )
    more = (
        f" The first {len(listed)} of {len(found.pairs):,} pairs." if len(listed) < len(found.pairs) else ""
    )
    seen_test.missing, seen_test.asked = (
        seen_test.missing + seen_train.missing,
        seen_test.asked + seen_train.asked,
    )
    seen_test.why = seen_test.why or seen_train.why
    parts = [
        (
            "Copies by threshold",
            _steps(found, len(test)),
            "Test images with an exact copy, or a near one by that threshold.",
        ),
        (
            f"Pairs at the threshold {found.threshold:g}",
            _pairs(found.around, found.around_cosines, found.threshold, sides),
            PAIRS_NOTE,
        ),
        (
            "Copies",
            pair_cards(listed, titles, sides),
            f"Left the test image, right the training image.{more}",
        ),
    ]
    text = " ".join([lead, *(f"{s[0].upper()}{s[1:]}." for s in _caveats(found))])
    write_page(folder, "Copies across the split", text, parts, seen_test)
