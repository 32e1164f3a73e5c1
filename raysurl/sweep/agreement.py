"""Does the order of the cells agree with the paper's? Ranks, pairs, and a plain sentence.

Letters: n cells that have both a value here and a number in the paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from raysurl import streams

Floats = NDArray[np.float64]
NOISE = 2.0  # standard errors of a difference from which on two cells differ for certain
RESAMPLES = 1000  # of the seeds of each cell, for the interval of a rank correlation


@dataclass(frozen=True)
class Pair:
    """One cell: its name, our mean over seeds (−inf: collapsed), its error (None: one seed), the paper's number,
    the seeds' values.
    """

    name: str
    ours: float
    error: float | None
    paper: float
    values: tuple[float, ...] = ()

    @property
    def shown(self) -> str:
        return self.name if math.isfinite(self.ours) else f"{self.name} (collapsed)"


@dataclass(frozen=True)
class Agreement:
    """`spearman` in [−1, 1], None where fewer than three cells or all equal. Pairs that tie in the paper are left out.

    `interval`: of 95 %, over resampled seeds; None where some cell has but one. `same` of `pairs` have the paper's
    order; `clear_same` of `clear` pairs that differ by more than the seeds' noise here and in the paper.
    """

    group: str
    cells: int
    spearman: float | None
    interval: tuple[float, float] | None
    same: int
    pairs: int
    clear_same: int
    clear: int
    judged: bool  # whether any cell has the seeds that tell its noise
    order: tuple[str, ...]  # names, best first
    paper_order: tuple[str, ...]

    def sentence(self, least: float) -> str:
        """Agreement or disagreement, with its numbers. `least`: the rank correlation that counts as agreement."""
        where = f"{self.group}: " if self.group else ""
        if self.cells < 2:
            return f"{where}{self.cells} cell(s) with a number in the paper: nothing to rank."
        pairs = f"{self.same} of {self.pairs} pairs stand in the paper's order"
        clear = "; no pair differs by more than the noise of the seeds"
        if self.clear:
            clear = f", and {self.clear_same} of the {self.clear} that differ by more than the seeds' noise"
        elif not self.judged:
            clear = "; one seed a cell, so that their noise is not known"
        if self.spearman is None:
            verdict = "too few different values for a rank correlation"
        else:
            said = "agrees with the paper" if self.spearman >= least else "disagrees with the paper"
            between = f", {self.interval[0]:.2f} to {self.interval[1]:.2f} at 95 %" if self.interval else ""
            verdict = f"the order {said} (Spearman {self.spearman:.2f}{between}, agreement from {least:g})"
        return f"{where}over {self.cells} cells {verdict}; {pairs}{clear}."


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation, −inf being a value like any other; None for fewer than three or where one side is constant."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(rank_correlations(np.array([a]), np.array([b]))[0])


def rank_correlations(a: Floats, b: Floats) -> Floats:
    """Spearman's of each pair of rows (R, n); a value that is missing ranks last. NaN where one row is all alike."""
    ranks = [rankdata(np.nan_to_num(rows, nan=-np.inf, neginf=-np.inf), axis=1) for rows in (a, b)]
    x, y = (rows - rows.mean(1, keepdims=True) for rows in ranks)
    with np.errstate(invalid="ignore"):
        found: Floats = (x * y).sum(1) / np.sqrt(np.square(x).sum(1) * np.square(y).sum(1))
    return found


def spearman_interval(pairs: Sequence[Pair]) -> tuple[float, float] | None:
    """The middle 95 % of rank correlations of means over seeds that are drawn with replacement, cell by cell."""
    if len(pairs) < 3 or any(len(p.values) < 2 and math.isfinite(p.ours) for p in pairs):
        return None
    rng = streams.numpy_stream(0, "agreement")
    means = [
        rng.choice(p.values, (RESAMPLES, len(p.values))).mean(1)
        if math.isfinite(p.ours)
        else np.full(RESAMPLES, p.ours)
        for p in pairs
    ]
    found = rank_correlations(np.stack(means, 1), np.array([[p.paper for p in pairs]]))
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def agree(group: str, pairs: Sequence[Pair], *, higher_is_better: bool = True) -> Agreement:
    """Compare the order of cells here with the paper's."""
    same = counted = clear = clear_same = 0
    for a, b in itertools.combinations(pairs, 2):
        if a.paper == b.paper:
            continue
        counted += 1
        agrees = a.ours != b.ours and (a.ours > b.ours) == (a.paper > b.paper)
        same += agrees
        if differ(a, b):
            clear += 1
            clear_same += agrees
    sign = -1 if higher_is_better else 1
    return Agreement(
        group,
        len(pairs),
        spearman([p.ours for p in pairs], [p.paper for p in pairs]),
        spearman_interval(pairs),
        same,
        counted,
        clear_same,
        clear,
        any(p.error is not None for p in pairs),
        tuple(p.shown for p in sorted(pairs, key=lambda p: sign * p.ours)),
        tuple(p.name for p in sorted(pairs, key=lambda p: sign * p.paper)),
    )


def differ(a: Pair, b: Pair) -> bool:
    """Whether two cells differ by more than the noise of their seeds, here and in the paper.

    The paper's noise is taken to be ours. A collapsed cell differs from any other.
    """
    if math.isinf(a.ours) or math.isinf(b.ours):
        return a.ours != b.ours
    if a.error is None or b.error is None:
        return False
    noise = NOISE * math.hypot(a.error, b.error)
    return min(abs(a.ours - b.ours), abs(a.paper - b.paper)) > noise
