"""Copies: images that are the same, and those that are nearly so, within a data set and across a split.

*Exact*: the decoded images have equal pixels, whatever their files look like; a digest of the pixels stands in the
embeddings file. *Near*: the cosine of the whitened embeddings is a threshold or more. Both are links, and what links
connect is a group (single linkage), so that two of a group may be less alike than the threshold.

Letters: N rows, Q test rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from raysurl.curation.near import Near, near_in, near_others
from raysurl.curation.rows import Embeddings, Rows, codes_of, embeddings_of, taken
from raysurl.curation.whitening import whitened
from raysurl.errors import InputError

THRESHOLD = 0.9
NEIGHBOURS = 16  # of a row that are looked at; all others too where the last of them is still a copy
ROUNDING = 1e-6  # of a cosine in single precision
DENSE = 2**24  # cosines that are held at once where a row has many copies
SHOWN = 12  # pairs on each side of the threshold that a page shows
STEPS = (0.99, 0.98, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Duplicates:
    """`group` (N,): numbers from 0 of what is connected, −1 for a row without a copy. `keep` (N,): of each group the
    largest image, or the first of these, and all rows without a copy. `exact` (N,): whether another row has the same
    pixels. `similarity` (N,): the cosine with the row of the group that is kept. `pairs` (P, 2) and `cosines` (P,):
    those not exact that are nearest to the threshold, on both sides of it. `steps`: of thresholds, how many rows have a
    copy. `recall`: of the search, 1.0 where it was exact. `pixels`: whether pixels could be compared.
    """

    threshold: float
    group: Index
    keep: NDArray[np.bool_]
    exact: NDArray[np.bool_]
    similarity: Rows
    pairs: Index
    cosines: Rows
    steps: dict[float, int]
    recall: float
    pixels: bool

    @property
    def groups(self) -> int:
        return int(self.group.max(initial=-1)) + 1

    @property
    def drop(self) -> Index:
        """Row numbers of what can go, so that one of each group stays."""
        return np.flatnonzero(~self.keep)


def duplicates(
    embeddings: Any, threshold: float = THRESHOLD, *, whiten: bool = True, seed: int = 0
) -> Duplicates:
    """Exact and near copies in embeddings: a file of `raysurl embed`, an `Embeddings`, or an array (N, D) of floats.

    `whiten`: cosines are those of whitened rows (raysurl.curation.whitening). Exact search up to 50,000 rows, above
    that by an index of recall .95 (`recall` says which). Raises InputError for a threshold outside (0, 1], and for what
    is not embeddings.
    """
    found = embeddings_of(embeddings)
    check_threshold(threshold)
    found = whitened(found) if whiten else found
    count = len(found)
    digests = codes_of([found.table])
    same = np.arange(count) if digests is None else _first_of(digests)
    first = np.flatnonzero(same == np.arange(count))
    place = np.searchsorted(first, same)  # of each row's representative among those
    near = _nothing()
    if len(first) > 1:
        near = near_others(found, min(NEIGHBOURS, len(first) - 1), seed=seed, among=first)
    labels = _connected(found.rows, first, near, threshold)[place]
    size = np.bincount(labels)
    group = np.where(size[labels] > 1, labels, -1)
    known = np.unique(group[group >= 0], return_inverse=True)[1]
    group[group >= 0] = known
    keep, kept = _kept(group, found.areas())
    pairs, cosines = _around(near, first, threshold)
    copies = np.bincount(same, minlength=count)
    return Duplicates(
        threshold=threshold,
        group=group,
        keep=keep,
        exact=copies[same] > 1,
        similarity=_with(found.rows, kept),
        pairs=pairs,
        cosines=cosines,
        steps=_steps(near, place, copies[same] > 1),
        recall=near.recall,
        pixels=digests is not None,
    )


def check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise InputError(f"threshold={threshold:g} is a cosine above 0 and up to 1, {THRESHOLD} for example")


def _nothing() -> Near:
    return Near(np.zeros((1, 0), np.float32), np.zeros((1, 0), np.int64), 1.0)


def _first_of(values: NDArray[Any]) -> Index:
    """(N,): of each row the first that has the same value."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def _connected(rows: Rows, first: Index, near: Near, threshold: float) -> Index:
    """Component of each of the rows `first` (M,), linked where their cosine is the threshold or more."""
    count, k = len(first), near.index.shape[1]
    linked = near.cosine >= threshold - ROUNDING
    start, rank = np.nonzero(linked)
    labels = _joined(np.arange(count), start, near.index[start, rank])
    if not k or k == count - 1:
        return labels
    # more copies than neighbours: all others of such a row are compared
    full = np.flatnonzero(linked[:, -1])
    bank, step = taken(rows, first) if len(full) else rows[:0], max(1, DENSE // count)
    for part in (full[i : i + step] for i in range(0, len(full), step)):
        start, other = np.nonzero(bank[part] @ bank.T >= threshold - ROUNDING)
        labels = _joined(labels, part[start], other)
    return labels


def _joined(labels: Index, start: Index, end: Index) -> Index:
    """Components (M,), further joined by links from `start` to `end`."""
    count = len(labels)
    matrix = coo_array((np.ones(len(start), np.int8), (labels[start], labels[end])), shape=(count, count))
    return np.asarray(connected_components(matrix, directed=False)[1], np.int64)[labels]


def _kept(group: Index, areas: Index) -> tuple[NDArray[np.bool_], Index]:
    """(N,) what stays, and (N,) which row stays for each."""
    count = len(group)
    kept = np.arange(count)
    members = np.flatnonzero(group >= 0)
    order = members[np.lexsort((members, -areas[members], group[members]))]
    heads = order[np.append(True, np.diff(group[order]) > 0)] if len(order) else order
    kept[members] = heads[group[members]]
    return kept == np.arange(count), kept


def _with(rows: Rows, others: Index) -> Rows:
    """(N,) cosine of each row with another."""
    found = np.ones(len(rows), np.float32)
    where = np.flatnonzero(others != np.arange(len(rows)))
    for start in range(0, len(where), 8192):
        part = where[start : start + 8192]
        found[part] = np.einsum("nd,nd->n", rows[part], rows[others[part]])
    return np.minimum(found, 1)


def _around(near: Near, first: Index, threshold: float) -> tuple[Index, Rows]:
    """Pairs of rows that are nearest to the threshold, at most `SHOWN` on each side, the most alike first."""
    start = np.repeat(np.arange(len(near.index)), near.index.shape[1])
    end, cosine = near.index.ravel(), near.cosine.ravel()
    once = start < end
    once |= ~(near.index[end] == start[:, None]).any(axis=1)  # the other end does not have it
    return _nearest_to(threshold, first[np.stack([start, end], 1)[once]].reshape(-1, 2), cosine[once])


def _nearest_to(threshold: float, pairs: Index, cosine: Rows) -> tuple[Index, Rows]:
    order = np.argsort(-cosine, kind="stable")
    above = int((cosine >= threshold - ROUNDING).sum())
    order = order[max(0, above - SHOWN) : above + SHOWN]
    return pairs[order], np.minimum(cosine[order], 1)


def _steps(near: Near, place: Index, exact: NDArray[np.bool_]) -> dict[float, int]:
    best = near.cosine[:, 0] if near.cosine.shape[1] else np.full(len(near.cosine), -1)
    return {step: int(((best[place] >= step - ROUNDING) | exact).sum()) for step in STEPS}


# -------------------------------------------------------------------- across a split


@dataclass(frozen=True, eq=False)
class Leaks:
    """`pairs` (P, 2): a test row and a train row that is a copy of it, by test row, the most alike first; `cosines`
    and `exact` (P,). Of a test row at most `NEIGHBOURS` train rows are listed. `around` (A, 2), `around_cosines` (A,):
    test rows and their nearest train row, not exact, whose cosine is nearest to the threshold. `steps`, `recall`,
    `pixels`: as of `Duplicates`, of test rows.
    """

    threshold: float
    pairs: Index
    cosines: Rows
    exact: NDArray[np.bool_]
    around: Index
    around_cosines: Rows
    steps: dict[float, int]
    recall: float
    pixels: bool

    @property
    def leaked(self) -> Index:
        """Numbers of the test rows that have a copy among the train rows."""
        return np.unique(self.pairs[:, 0])


def leaks(
    train: Any, test: Any, threshold: float = THRESHOLD, *, whiten: bool = True, seed: int = 0
) -> Leaks:
    """Test rows (Q,) with a copy among train rows (N,), both as `duplicates` takes them.

    Rows of both are whitened as the train rows ask. Raises InputError for embeddings of different networks or widths,
    and as `duplicates`.
    """
    bank, queries = embeddings_of(train), embeddings_of(test)
    check_threshold(threshold)
    check_same_space(bank, queries)
    if whiten:
        bank, queries = whitened(bank), whitened(queries, bank)
    near = near_in(bank, queries, min(NEIGHBOURS, len(bank)), seed=seed)
    of_bank, of_queries = _shared_digests(bank, queries)
    known = of_bank is not None and of_queries is not None
    test_rows, rank = np.nonzero(near.cosine >= threshold - ROUNDING)
    pairs = np.stack([test_rows, near.index[test_rows, rank]], 1)
    if known:
        equal = _equal(of_bank, of_queries)
        pairs = np.unique(np.concatenate([pairs, equal]), axis=0)
    exact = of_queries[pairs[:, 0]] == of_bank[pairs[:, 1]] if known else np.zeros(len(pairs), bool)
    cosines = np.einsum("pd,pd->p", queries.rows[pairs[:, 0]], bank.rows[pairs[:, 1]])
    order = np.lexsort((-cosines, ~exact, pairs[:, 0]))
    leaked = np.zeros(len(queries), bool)
    leaked[pairs[exact, 0]] = True
    around, around_cosines = _around_split(near, leaked, threshold)
    return Leaks(
        threshold=threshold,
        pairs=pairs[order],
        cosines=np.minimum(cosines[order], 1),
        exact=exact[order],
        around=around,
        around_cosines=around_cosines,
        steps={s: int(((near.cosine[:, 0] >= s - ROUNDING) | leaked).sum()) for s in STEPS},
        recall=near.recall,
        pixels=known,
    )


def check_same_space(one: Embeddings, other: Embeddings) -> None:
    """Raises InputError where cosines between the two would mean nothing."""
    if one.dim != other.dim:
        raise InputError(
            f"embeddings of {one.dim} and of {other.dim} values cannot be compared; embed both with one run"
        )
    if one.model and other.model and one.model != other.model:
        raise InputError("the two files hold embeddings of different networks; embed both with one run")


def _shared_digests(bank: Embeddings, queries: Embeddings) -> tuple[Any, Any]:
    """Numbers (N,) and (Q,) that are equal where pixels are; None where a file does not say."""
    codes = codes_of([bank.table, queries.table])
    return (None, None) if codes is None else (codes[: len(bank)], codes[len(bank) :])


def _equal(bank: Index, queries: Index) -> Index:
    """(P, 2) every query, and the first `NEIGHBOURS` rows of the bank that have its number."""
    order = np.argsort(bank, kind="stable")
    low, high = (np.searchsorted(bank[order], queries, side) for side in ("left", "right"))
    many = np.minimum(high - low, NEIGHBOURS)
    start = np.repeat(np.arange(len(queries)), many)
    offset = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    return np.stack([start, order[low[start] + offset]], 1).reshape(-1, 2)


def _around_split(near: Near, exact: NDArray[np.bool_], threshold: float) -> tuple[Index, Rows]:
    rows = np.flatnonzero(~exact)
    return _nearest_to(threshold, np.stack([rows, near.index[rows, 0]], 1), near.cosine[rows, 0])
