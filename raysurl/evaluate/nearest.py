"""The most similar rows of a bank: exact, ties settled, and little memory beside the rows themselves.

On a CPU each block of similarities is read once by compiled code, each query keeping the candidates that may yet be
among its k nearest; on an accelerator, and where there is little to do, `topk` takes a block's best and they are merged
with those of the blocks before. Of equal similarities the lower index of the bank is nearer, in both.

Letters: N bank rows, Q queries, D dimensions, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl.errors import InputError

QUERY_BLOCK = 2048  # queries and
BANK_BLOCK = 2048  # bank rows whose similarities are held at once: 16 MiB
QUERIES_KEPT = 4096  # queries whose candidates are held at once: 13 MiB at k = 200
TOPK_BANK_BLOCK = 16384  # rows of which one call of `topk` takes the best
TOGETHER = 16  # columns of a product
RANKED = 2**21  # cosines sorted at once, which takes 100 MiB
COMPILED_FROM = 2**25  # similarities on a CPU: fewer take less time than loading compiled code


def nearest_blocks(bank: Tensor, queries: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`nearest` for a block of queries after the other, so that a large (Q, k) need not be held."""
    for start in range(0, len(queries), QUERIES_KEPT):
        yield nearest(bank, queries[start : start + QUERIES_KEPT], k)


@torch.no_grad()
def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k ≤ N rows of bank (N, D) of highest cosine with each query (Q, D): cosines and indices (Q, k).

    Rows may have any length and floating type; a row of zeros has the cosine 0 with all. Sorted by falling cosine,
    equal cosines by index. Never more than a block of cosines exists at once. Raises InputError for a value that is
    not finite.
    """
    many = bank.device.type == "cpu" and len(bank) * len(queries) >= COMPILED_FROM
    search = _compiled if many else _by_topk
    similarity, index = search(bank, _unit(queries), k)
    order = similarity.argsort(dim=1, descending=True, stable=True)
    return similarity.gather(1, order), index.gather(1, order)


@torch.no_grad()
def ranked_blocks(bank: Tensor, queries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """All rows of bank (N, D) by falling cosine with each query: cosines (q, N) and indices (q, N) of a block of
    queries after the other. Ties, rows of zeros and errors as in `nearest`."""
    for block in _unit(queries).split(max(1, RANKED // max(len(bank), 1))):
        width = _width(len(bank), TOPK_BANK_BLOCK)
        parts = [_products(block, _unit(rows), width) for rows in bank.split(width)]
        yield torch.cat(parts, 1).sort(dim=1, descending=True, stable=True)


def _unit(rows: Tensor) -> Tensor:
    rows = rows.float()
    if not torch.isfinite(torch.linalg.vector_norm(rows, dim=1)).all():
        if not torch.isfinite(rows).all():
            raise InputError("a row of the bank or the queries is not finite: it has no nearest neighbours")
        rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp(min=1)  # its square would be beyond fp32
    return F.normalize(rows, dim=1)


def _width(rows: int, most: int) -> int:
    """Of all blocks alike, the last one padded: equal rows have equal products only where shapes are equal, and where
    no column is left over from those that a processor takes together (AMD's four).
    """
    width = -(-rows // -(-rows // most))
    return -(-width // TOGETHER) * TOGETHER


def _products(queries: Tensor, rows: Tensor, width: int, out: Tensor | None = None) -> Tensor:
    """Of queries (q, D) and rows (n, D), n ≤ width: (q, n), in memory of `out` (q + 1 or more, width) if given."""
    count = len(queries)
    if count == 1:  # a matrix times a vector, whose sums depend on where a column stands
        queries = queries.expand(2, -1)
    padded = F.pad(rows, (0, 0, 0, width - len(rows))) if len(rows) < width else rows
    found = torch.mm(queries, padded.T, out=None if out is None else out[: len(queries)])
    return found[:count, : len(rows)]


# -------------------------------------------------------------------- much on a CPU


def _compiled(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and indices (Q, k), the latter rising."""
    from raysurl.evaluate.candidates import Candidates

    threads, width = torch.get_num_threads(), _width(len(bank), BANK_BLOCK)
    found = Candidates(len(queries), k, threads)
    products = torch.empty(
        min(len(queries), QUERY_BLOCK) + 1, width
    )  # in one place: fresh pages cost a third as much
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(bank), width):
            rows = _unit(bank[first : first + width])
            for start in range(0, len(queries), QUERY_BLOCK):
                part = slice(start, start + QUERY_BLOCK)
                similarity = _products(queries[part], rows, width, products)
                found.add(similarity.numpy(), first, part, pool)
    best = found.best()
    return torch.from_numpy(best[0]), torch.from_numpy(best[1])


# -------------------------------------------------------------------- little, or on an accelerator


def _by_topk(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and indices (Q, k), the latter rising."""
    found = [_block_by_topk(bank, block, k) for block in queries.split(QUERY_BLOCK)]
    return torch.cat([similarity for similarity, _ in found]), torch.cat([index for _, index in found])


def _block_by_topk(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    similarity = queries.new_zeros(len(queries), 0)
    index = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
    width = _width(len(bank), TOPK_BANK_BLOCK)
    for start in range(0, len(bank), width):
        rows = _unit(bank[start : start + width])
        block = _products(queries, rows, width)
        chosen = _largest(block, min(k, block.shape[1]))
        similarity = torch.cat([similarity, block.gather(1, chosen)], 1)
        index = torch.cat([index, chosen + start], 1)
        chosen = _largest(similarity, min(k, similarity.shape[1]))
        similarity, index = similarity.gather(1, chosen), index.gather(1, chosen)
    return similarity, index


def _largest(values: Tensor, k: int) -> Tensor:
    """Columns (Q, k), rising, of the k largest values (Q, n) in each row; of equal values the first ones.

    `topk` leaves open which of several equal values at the cut it returns, so those rows are settled here.
    """
    top, columns = values.topk(k, dim=1)
    cut = top[:, -1:]
    open_rows = ((values >= cut).sum(1) > k).nonzero()[:, 0]
    if len(open_rows):
        rows, cut = values[open_rows], cut[open_rows]
        above, equal = rows > cut, rows == cut
        wanted = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
        columns[open_rows] = wanted.nonzero()[:, 1].view(-1, k)
    return columns.sort(dim=1).values
