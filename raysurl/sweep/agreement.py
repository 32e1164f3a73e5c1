"""Does the order of the cells agree with the paper's? Ranks, pairs, and a plain sentence.

Letters: n cells that have both a value here and a number in the paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import rankdata, spearmanr

NOISE = 2.0  # standard errors of a difference from which on two cells differ for certain


@dataclass(frozen=True)
class Pair:
    """One cell: its name, our mean over seeds (−inf: collapsed), its standard error (None: one seed), the paper's."""

    name: str
    ours: float
    error: float | None
    paper: float

    @property
    def shown(self) -> str:
        return self.name if math.isfinite(self.ours) else f"{self.name} (collapsed)"


@dataclass(frozen=True)
class Agreement:
    """`spearman` in [−1, 1], None where fewer than three cells or all equal. Pairs that tie in the paper are left out.

    `same` of `pairs` have the paper's order; `clear_same` of `clear` pairs that differ by more than the seeds' noise.
    """

    group: str
    cells: int
    spearman: float | None
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
            verdict = f"the order {said} (Spearman {self.spearman:.2f}, agreement from {least:g})"
        return f"{where}over {self.cells} cells {verdict}; {pairs}{clear}."


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation, −inf being a value like any other; None for fewer than three or where one side is constant."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(spearmanr(rankdata(a), rankdata(b)).statistic)


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
        same,
        counted,
        clear_same,
        clear,
        any(p.error is not None for p in pairs),
        tuple(p.shown for p in sorted(pairs, key=lambda p: sign * p.ours)),
        tuple(p.name for p in sorted(pairs, key=lambda p: sign * p.paper)),
    )


def differ(a: Pair, b: Pair) -> bool:
    """Whether two cells differ by more than the noise of their seeds; a collapsed one differs from any other."""
    if math.isinf(a.ours) or math.isinf(b.ours):
        return a.ours != b.ours
    if a.error is None or b.error is None:
        return False
    return abs(a.ours - b.ours) > NOISE * math.hypot(a.error, b.error)
