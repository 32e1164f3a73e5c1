"""What a paper concludes from a table, and whether the cells here show it: supported, contradicted, or not to be seen.

A claim names two sides of cells by labels of axes. Cells of both sides that agree in all other axes are compared, and
the difference is the mean over these comparisons. Its interval of 95 % is Student's t with the deviation between seeds
pooled over the compared cells, which are taken to be equally noisy: Σ(nᵢ − 1) degrees of freedom for cells of nᵢ seeds.
Half of it is the smallest effect that could be seen. A cell that collapsed stands below any that did not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from scipy.stats import t

from raysurl.recipe.schema import Section

Labels = dict[str, str | list[str]]
# of each verdict, as it is said
WORDS = {
    "supported": "supported",
    "contradicted": "contradicted",
    "not seen": "cannot be seen at this size",
}


class Claim(Section):
    """One sentence of the paper. `better` and `worse`: axis -> the labels of a side; both name the same axes."""

    says: str
    better: Labels
    worse: Labels

    def check(self, axes: Mapping[str, Sequence[str]]) -> None:
        """Raises ValueError where a side names what is not among the labels of `axes`."""
        if not self.better or set(self.better) != set(self.worse):
            raise ValueError(f"the claim {self.says!r} must name the same axes for better and for worse")
        for axis, labels in [*self.better.items(), *self.worse.items()]:
            if axis not in axes:
                raise ValueError(
                    f"the claim {self.says!r} names {axis}, which is no axis; they are {', '.join(axes)}"
                )
            if wrong := [label for label in listed(labels) if axes[axis] and label not in axes[axis]]:
                raise ValueError(
                    f"the claim {self.says!r} names {axis}={wrong[0]}; it has {', '.join(axes[axis])}"
                )


class Compared(Protocol):
    """What is known of a cell: raysurl.sweep.results.CellResult."""

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def values(self) -> list[float]: ...
    @property
    def ranked(self) -> float | None: ...
    @property
    def paper(self) -> float | None: ...


@dataclass(frozen=True)
class Verdict:
    """`difference` ± `half` points in favour of the claim, over `comparisons`; `paper`: the paper's own difference.

    `difference` is None where cells are missing or a side collapsed, `half` where no cell has two seeds.
    """

    claim: Claim
    verdict: Literal["supported", "contradicted", "not seen"]
    comparisons: int
    difference: float | None = None
    half: float | None = None
    paper: float | None = None
    collapsed: bool = False

    @property
    def sentence(self) -> str:
        return f"{WORDS[self.verdict]}: {self.claim.says}: {self.numbers}"

    @property
    def numbers(self) -> str:
        """What the verdict stands on: the difference and its interval, or the smallest effect that could be seen."""
        paper = f" (the paper: {self.paper:+.2f})" if self.paper is not None else ""
        if not self.comparisons:
            return f"no cells of both sides were run{paper}."
        over = f"over {self.comparisons} comparison{'s' if self.comparisons > 1 else ''}"
        if self.collapsed:
            side = "the other" if self.verdict == "supported" else "this"
            return f"{side} side collapsed, {over}{paper}."
        if self.difference is None:
            return f"both sides collapsed{paper}."
        if self.half is None:
            return f"{self.difference:+.2f} {over}, of one seed, so that the noise is not known{paper}."
        numbers = f"{self.difference:+.2f} ± {self.half:.2f} {over}"
        if self.verdict != "not seen":
            return f"{numbers}{paper}."
        return f"{numbers}; an effect of {self.half:.2f} could be{paper}."


def listed(labels: str | list[str]) -> list[str]:
    return [labels] if isinstance(labels, str) else labels


def judge(
    claim: Claim, axes: Sequence[str], cells: Sequence[Compared], *, higher_is_better: bool = True
) -> Verdict:
    """The verdict on one claim; `axes` name the labels of the cells in their order."""
    sides = [_side(labels, axes, cells) for labels in (claim.better, claim.worse)]
    keys = [key for key in sides[0] if key in sides[1]]
    sign = 1 if higher_is_better else -1
    paper = _difference([[[c.paper for c in side[key]] for side in sides] for key in keys])
    paper = None if paper is None else sign * paper
    lost = [[_lost(side[key]) for side in sides] for key in keys]
    balance = sum(worse - better for better, worse in lost)
    if balance:
        verdict: Literal["supported", "contradicted"] = "supported" if balance > 0 else "contradicted"
        return Verdict(claim, verdict, len(keys), paper=paper, collapsed=True)
    whole = [key for key, (better, worse) in zip(keys, lost, strict=True) if not better and not worse]
    ours = _difference([[[c.ranked for c in side[key]] for side in sides] for key in whole])
    if ours is None:
        return Verdict(claim, "not seen", len(keys), paper=paper)
    ours, half = sign * ours, _half([[side[key] for side in sides] for key in whole])
    seen = half is not None and abs(ours) > half
    kind = ("supported" if ours > 0 else "contradicted") if seen else "not seen"
    return Verdict(claim, kind, len(whole), ours, half, paper)  # type: ignore[arg-type]


def _side(
    labels: Labels, axes: Sequence[str], cells: Sequence[Compared]
) -> dict[tuple[str, ...], list[Compared]]:
    """Labels of the other axes -> the cells of a side that have a result."""
    found: dict[tuple[str, ...], list[Compared]] = {}
    for cell in cells:
        named = dict(zip(axes, cell.labels, strict=True))
        if cell.ranked is not None and all(named[axis] in listed(some) for axis, some in labels.items()):
            rest = tuple(label for axis, label in named.items() if axis not in labels)
            found.setdefault(rest, []).append(cell)
    return found


def _lost(cells: Sequence[Compared]) -> float:
    """The share of cells that collapsed."""
    return statistics.fmean(cell.ranked is not None and math.isinf(cell.ranked) for cell in cells)


def _difference(comparisons: Sequence[Sequence[Sequence[float | None]]]) -> float | None:
    """Mean over comparisons of mean(better) − mean(worse); of those whose numbers are all there."""
    found = []
    for better, worse in comparisons:
        a, b = [v for v in better if v is not None], [v for v in worse if v is not None]
        if len(a) == len(better) and len(b) == len(worse):
            found.append(statistics.fmean(a) - statistics.fmean(b))
    return statistics.fmean(found) if found else None


def _half(comparisons: Sequence[Sequence[Sequence[Compared]]]) -> float | None:
    """Half of the interval of 95 % of the difference; None where no cell has two seeds."""
    squares = freedom = weight = 0.0
    for sides in comparisons:
        for side in sides:
            for cell in side:
                values = cell.values
                weight += 1 / len(values) / (len(side) * len(comparisons)) ** 2
                freedom += len(values) - 1
                squares += sum((v - statistics.fmean(values)) ** 2 for v in values)
    if not freedom:
        return None
    return float(t.ppf(0.975, freedom)) * math.sqrt(squares / freedom * weight)
