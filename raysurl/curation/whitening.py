"""Whitened embeddings: what all images share is taken out, so that a cosine says what two have in common beyond that.

The features of a backbone are positive and lie along a few directions, so that the cosine of any two images is near 1
(results/benchmarks/curation.md). Rows less their mean are divided, along each axis of their covariance, by its standard
deviation, √(λ + `SHRINK`·mean λ), and made of length 1 again; the second term keeps axes on which rows hardly differ
from being blown up.

Letters: N rows, D values.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysurl.curation.rows import Embeddings
from raysurl.embed import room

SHRINK = 0.01


def whitened(of: Embeddings, like: Embeddings | None = None) -> Embeddings:
    """The same embeddings, whitened by their own mean and covariance, or by those of `like`.

    Rows that all are equal stay as they are.
    """
    mean, matrix = _transform(of if like is None else like)
    if not matrix.any():
        return of
    rows = room(len(of), of.dim).numpy()
    for start, block in of.blocks():
        values = (block - mean) @ matrix
        length = np.linalg.norm(values, axis=1, keepdims=True)
        # a row that is the mean has no direction; any will do that is the same for its copies
        values = np.where(length > 1e-9, values, matrix[0])
        rows[start : start + len(block)] = values / np.linalg.norm(values, axis=1, keepdims=True)
    return replace(of, rows=rows)


def _transform(of: Embeddings) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,), and the matrix (D, D) by which rows less it are multiplied; zeros where rows do not differ."""
    count, total = len(of), np.zeros(of.dim)
    for _, block in of.blocks():
        total += block.sum(axis=0, dtype=np.float64)
    mean = total / count
    covariance = np.zeros((of.dim, of.dim))
    for _, block in of.blocks():
        centred = block - mean
        covariance += centred.T @ centred
    values, axes = np.linalg.eigh(covariance / count)
    spread = float(np.maximum(values, 0).mean())
    # of equal rows rounding alone
    if spread < 1e-12:
        return mean, np.zeros((of.dim, of.dim))
    return mean, axes / np.sqrt(np.maximum(values, 0) + SHRINK * spread)
