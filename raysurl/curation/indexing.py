"""A FAISS index of embeddings on disk: every row (flat), cells of rows (IVF, Jégou et al. 2011) or of codes (PQ).

Cosines are inner products of unit rows. Cells hold rows in half precision. Rows are streamed, so that the index, and
what its cells are learned from, are all that is held. How many cells a query visits is doubled until the recall that
is asked for is measured against exact search, on rows of the index itself.

Letters: N rows, D values, Q queries, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from raysurl import streams
from raysurl.curation.rows import Rows
from raysurl.data.machine import free_memory
from raysurl.errors import InputError
from raysurl.paths import whole

Kind = Literal["flat", "ivf", "pq"]
KINDS = ("auto", "flat", "ivf", "pq")
FLAT_BELOW = 50_000  # rows
PER_CELL = 40  # rows from which the place of a cell is learned
CODE = 4  # values that one byte of a code stands for, or fewer
SHARD = 2**17  # rows that are added between two saves
K = 10  # neighbours of which the recall is measured
# rows of which it is measured, and neighbours among which equally near ones are known
QUERIES, DEEP = 256, 64


class RowBlocks(Protocol):
    """N rows of length 1 and D values, block by block."""

    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def blocks(self) -> Iterator[tuple[int, Rows]]: ...


@dataclass(frozen=True)
class BuiltIndex:
    """`recall`: the share of the `K` nearest of `queries` rows that is found in the `visited` cells."""

    kind: Kind
    rows: int
    dim: int
    cells: int
    visited: int
    recall: float
    queries: int


def kind_for(rows: int, dim: int) -> Kind:
    """Flat for few rows, IVF where rows in half precision take less than half of the memory that is free, else PQ."""
    if rows < FLAT_BELOW:
        return "flat"
    return "ivf" if 2 * rows * dim <= free_memory() // 2 else "pq"


def build(
    rows: RowBlocks, kind: Kind, *, recall: float = 0.95, seed: int = 0, folder: Path | None = None
) -> tuple[Any, BuiltIndex]:
    """The index of all rows, and what was measured. `folder`: where unfinished work is kept, and found again."""
    if kind == "flat":
        index = faiss.IndexFlatIP(rows.dim)
        for _, block in rows.blocks():
            index.add(block)
    else:
        index = _in_cells(rows, kind, seed, folder)
    return index, tuned(index, rows, kind, recall, seed)


def _in_cells(rows: RowBlocks, kind: Kind, seed: int, folder: Path | None) -> Any:
    start = folder / "empty.faiss" if folder else None
    if start is not None and start.is_file():
        empty = faiss.read_index(str(start))
    else:
        empty = _learned(rows, kind, seed)
        if start is not None:
            write_whole(empty, start)
    if folder is None:
        for _, block in rows.blocks():
            empty.add(block)
        return empty
    shards = -(-len(rows) // SHARD)
    missing = {n for n in range(shards) if not _shard(folder, n).is_file()}
    part = None
    for first, block in rows.blocks() if missing else ():
        number = first // SHARD
        if number in missing:
            part = part or faiss.clone_index(empty)
            part.add_with_ids(block, np.arange(first, first + len(block)))
            if (first + len(block)) % SHARD == 0 or first + len(block) == len(rows):
                write_whole(part, _shard(folder, number))
                part = None
    for number in range(shards):
        empty.merge_from(faiss.read_index(str(_shard(folder, number))), 0)
    return empty


def _learned(rows: RowBlocks, kind: Kind, seed: int) -> Any:
    """An empty index whose cells, and codes, are learned from a sample of the rows."""
    count, dim = len(rows), rows.dim
    cells = max(1, min(int(4 * count**0.5), count // PER_CELL))
    # 256 codes of a part are learned from as many rows as of 256 cells
    wanted = max(cells, 256) * PER_CELL
    chosen = np.sort(streams.numpy_stream(seed, "index sample").permutation(count)[:wanted])
    sample = rows_at(rows, chosen)
    coarse = faiss.IndexFlatIP(dim)
    index: Any
    if kind == "ivf":
        index = faiss.IndexIVFScalarQuantizer(
            coarse, dim, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
    else:
        if count < 256:
            raise InputError(
                f"kind=pq needs 256 rows or more to learn its codes from, not {count}; use kind=flat"
            )
        index = faiss.IndexIVFPQ(coarse, dim, cells, _bytes(dim), 8, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.seed = streams.integer(seed, "codes")
        index.pq.cp.min_points_per_centroid = 1
    index.cp.seed, index.cp.niter, index.cp.spherical = streams.integer(seed, "cells"), 10, True
    index.cp.min_points_per_centroid = 1
    index.train(sample)
    return index


def _bytes(dim: int) -> int:
    """Of a code: one for every `CODE` values, or as near to that as divides them."""
    return next(parts for parts in range(max(1, dim // CODE), 0, -1) if dim % parts == 0)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.faiss"


def write_whole(index: Any, path: Path) -> None:
    with whole(path) as partial:
        faiss.write_index(index, str(partial))


# -------------------------------------------------------------------- recall


def tuned(index: Any, rows: RowBlocks, kind: Kind, recall: float, seed: int) -> BuiltIndex:
    """Sets how many cells a query visits: doubled until `recall` is reached, or more of them no longer help."""
    count, k = len(rows), min(K, len(rows) - 1)
    which = np.sort(streams.numpy_stream(seed, "recall").permutation(count)[:QUERIES])
    cells = 1 if kind == "flat" else int(index.nlist)
    if kind == "flat" or not k:
        return BuiltIndex(kind, count, rows.dim, cells, cells, 1.0, len(which))
    queries = rows_at(rows, which)
    near, truth = nearest_exactly(rows, queries, min(DEEP, count - 1), which)
    limit = near[:, k - 1 : k] - 1e-6
    right = [set(row[keep].tolist()) for row, keep in zip(truth, near >= limit, strict=True)]
    visited, reached, before = min(4, cells), 0.0, -1.0
    while True:
        index.nprobe = visited
        found = without_itself(index.search(queries, k + 1)[1], which)
        reached = float(np.mean([len(right[q] & set(row.tolist())) / k for q, row in enumerate(found)]))
        # codes blur what is near: from some point on more cells add nothing
        if reached >= recall or visited == cells or (kind == "pq" and reached - before < 0.002):
            return BuiltIndex(kind, count, rows.dim, cells, visited, min(reached, 1.0), len(which))
        before, visited = reached, min(2 * visited, cells)


def rows_at(rows: RowBlocks, which: NDArray[np.int64]) -> Rows:
    """(Q, D) the rows `which`, ascending."""
    found = np.empty((len(which), rows.dim), np.float32)
    for start, block in rows.blocks():
        low, high = np.searchsorted(which, [start, start + len(block)])
        found[low:high] = block[which[low:high] - start]
    return found


def nearest_exactly(
    rows: RowBlocks, queries: Rows, k: int, itself: NDArray[np.int64] | None = None
) -> tuple[Rows, NDArray[np.int64]]:
    """The k nearest rows of queries (Q, D): cosines and numbers (Q, k), falling. `itself` (Q,): a row that each is, and
    that is none of its neighbours."""
    near = np.full((len(queries), 0), -2, np.float32)
    index = np.zeros((len(queries), 0), np.int64)
    for start, block in rows.blocks():
        cosine = queries @ block.T
        if itself is not None:
            mine = np.flatnonzero((itself >= start) & (itself < start + len(block)))
            cosine[mine, itself[mine] - start] = -2
        near = np.concatenate([near, cosine], 1)
        index = np.concatenate([index, np.broadcast_to(start + np.arange(len(block)), cosine.shape)], 1)
        if near.shape[1] > k:
            best = np.argpartition(-near, k - 1, axis=1)[:, :k]
            near, index = np.take_along_axis(near, best, 1), np.take_along_axis(index, best, 1)
    order = np.argsort(-near, axis=1, kind="stable")
    return np.take_along_axis(near, order, 1), np.take_along_axis(index, order, 1)


def without_itself(found: NDArray[np.int64], which: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers (Q, k + 1) less that of the query's own row, or, where it is not among them, less the last: (Q, k)."""
    itself = found == which[:, None]
    itself[~itself.any(axis=1), -1] = True
    return found[~itself].reshape(len(which), -1)
