"""What a sweep directory holds, as cells with their numbers."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from raysurl import plain
from raysurl.errors import InputError
from raysurl.intervals import over_seeds
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.agreement import Agreement, Pair, agree
from raysurl.sweep.axis import labels_of
from raysurl.sweep.claims import Verdict, judge
from raysurl.sweep.space import INACTIVE, Space, space_from
from raysurl.sweep.trial import Outcome

LOST = ("collapsed", "diverged")
Trials = tuple[tuple[str, dict[str, Any], Outcome | None], ...]  # id, cell.json, outcome


@dataclass(frozen=True)
class CellResult:
    """A cell: its labels in the order of the axes, the outcomes of its seeds, the paper's number, why it is not run."""

    labels: tuple[str, ...]
    metric: str
    outcomes: tuple[Outcome, ...]
    asked: int  # seeds
    paper: float | None = None
    why: str = ""

    def of(self, metric: str) -> CellResult:
        """The same cell, judged by another metric."""
        return replace(self, metric=metric)

    @cached_property
    def values(self) -> list[float]:
        found = (o.metrics.get(self.metric) for o in self.outcomes if o.state == "finished")
        return [v for v in found if v is not None]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of 95 %, of the mean over seeds."""
        return over_seeds(self.values)

    @property
    def states(self) -> Counter[str]:
        return Counter(outcome.state for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        return sum(outcome.seconds for outcome in self.outcomes)

    @property
    def epoch_s(self) -> float | None:
        """Mean seconds of an epoch over the seeds."""
        found = [o.epoch_s for o in self.outcomes if o.epoch_s is not None]
        return statistics.fmean(found) if found else None

    @property
    def ranked(self) -> float | None:
        """What the cell is ranked by: its mean; −inf where most seeds collapsed or diverged; None without either."""
        lost = sum(self.states[state] for state in LOST)
        if lost and lost >= len(self.values):
            return -math.inf
        return self.mean

    def text(self) -> str:
        """`89.12 ± 0.30 (3)`, `collapsed (3)`, `89.12 (1), 2 collapsed`, `not run`."""
        if self.why:
            return "not run"
        parts = []
        if self.mean is not None:
            spread = f" ± {self.std:.2f}" if self.std is not None else ""
            parts.append(f"{self.mean:.2f}{spread} ({len(self.values)})")
        for state in (*LOST, "pruned", "failed"):
            if count := self.states[state]:
                parts.append(f"{count} {state}" if parts else f"{state} ({count})")
        if (left := self.asked - len(self.outcomes)) > 0:
            parts.append(f"{left} to run")
        return ", ".join(parts) or ("to run" if self.asked else "not run")


@dataclass(frozen=True)
class Made:
    """By what the trials were made: their seeds, the commits, and of each trial's process hardware and threads."""

    seeds: tuple[int, ...] = ()
    commits: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """`space` is at the scale that was run; `entries` in the order of the table, or of the trials of an open search."""

    directory: Path
    space: Space
    scale: str
    stands_in: str
    entries: tuple[CellResult, ...]
    trials: Trials
    starts: tuple[dict[str, Any], ...]
    made: Made = Made()
    of_seeds: bool = (
        True  # whether the values of single seeds are known; else only cells' means and deviations are
    )

    @property
    def axes(self) -> list[str]:
        return list(self.space.axes)

    def short(self, axis: str) -> str:
        """The last part of the axis's name, where no other axis ends so."""
        last = axis.rpartition(".")[2]
        return last if sum(a.rpartition(".")[2] == last for a in self.axes) == 1 else axis

    @property
    def higher_is_better(self) -> bool:
        return self.space.objectives[self.space.metric] == "max"

    @property
    def ended(self) -> list[Outcome]:
        return [outcome for _, _, outcome in self.trials if outcome]

    @property
    def seconds(self) -> float:
        return sum(outcome.seconds for outcome in self.ended)

    @property
    def counts(self) -> Counter[str]:
        return Counter(outcome.state if outcome else "to run" for _, _, outcome in self.trials)

    @property
    def grouped(self) -> str | None:
        return self.space.group if self.space.group in self.space.axes else None

    def name(self, entry: CellResult) -> str:
        """The labels that tell the cell from others that were run."""
        varied = [
            i for i, axis in enumerate(self.axes) if axis != self.grouped and len(self.labels(axis)) > 1
        ]
        return ", ".join(entry.labels[i] for i in varied) or ", ".join(entry.labels)

    def labels(self, axis: str) -> list[str]:
        """Labels of an axis of which a cell was run, in the order of the space."""
        at = self.axes.index(axis)
        found = {e.labels[at] for e in self.entries if not e.why}
        known = [label for label in [*labels_of(self.space.axes[axis]), INACTIVE] if label in found]
        return [*known, *sorted(found - set(known))]

    def best(self) -> tuple[str, CellResult] | None:
        """The id of a trial of the best cell, and the cell."""
        ranked = [e for e in self.entries if e.mean is not None and e.metric == self.space.metric]
        if not ranked:
            return None
        sign = 1 if self.higher_is_better else -1
        best = max(ranked, key=lambda e: sign * (e.mean or 0.0))
        wanted = dict(zip(self.axes, best.labels, strict=True))
        for name, what, outcome in self.trials:
            alike = {a: label for a, label in what["labels"].items() if a not in self.space.measures}
            if alike.items() <= wanted.items() and outcome and outcome.state == "finished":
                return name, best
        return None

    def agreements(self) -> list[Agreement]:
        """One per label of the grouping axis; cells without a number in the paper or here have no part."""
        groups: dict[str, list[Pair]] = {}
        at = self.axes.index(self.grouped) if self.grouped else None
        for entry in self.entries:
            if entry.paper is None or entry.ranked is None:
                continue
            error = entry.std / math.sqrt(len(entry.values)) if entry.std is not None else None
            values = tuple(entry.values) if self.of_seeds else ()
            # equal accuracies must tie, whatever the last bit of their means
            pair = Pair(self.name(entry), round(entry.ranked, 6), error, entry.paper, values)
            groups.setdefault("" if at is None else entry.labels[at], []).append(pair)
        return [agree(g, pairs, higher_is_better=self.higher_is_better) for g, pairs in groups.items()]

    def verdicts(self) -> list[Verdict]:
        """One per claim of the paper."""
        return [
            judge(claim, self.axes, self.entries, higher_is_better=self.higher_is_better)
            for claim in self.space.claims
        ]


def read_sweep(directory: Path) -> Sweep:
    """Raises InputError where the directory holds no sweep."""
    stored = sweep_directory.read(directory)
    space = space_from(stored["space"])
    trials = tuple(sweep_directory.outcomes(directory))
    by_id = {name: outcome for name, _, outcome in trials}
    paper = {tuple(p["labels"]): p["value"] for p in stored["paper"]}
    if space.search == "grid":
        entries = [
            CellResult(
                tuple(cell["labels"]),
                space.metric_of(cell["labels"]),
                tuple(o for i in cell["ids"] if (o := by_id.get(i))),
                len(cell["ids"]),
                paper.get(tuple(cell["labels"])),
                cell.get("why", ""),
            )
            for cell in stored["cells"]
        ]
    else:
        entries = [
            CellResult(tuple(what["labels"].values()), space.metric, (outcome,) if outcome else (), 1)
            for _, what, outcome in trials
        ]
    if any(len(entry.labels) != len(space.axes) for entry in entries):
        raise InputError(
            f"sweep={directory} holds cells that are not of its space; run it in a new directory"
        )
    return Sweep(
        directory, space, stored["identity"]["scale"], stored["stands_in"],
        tuple(entries), trials, tuple(stored["starts"]), _made(directory, trials, stored["starts"]),
    )  # fmt: skip


def _made(directory: Path, trials: Trials, starts: Sequence[Mapping[str, Any]]) -> Made:
    """Of the trials that have ended, as their results.json say."""
    found = [
        plain.found_in(directory / "trials" / name / "results.json") for name, _, outcome in trials if outcome
    ]
    seeds = {what["seed"] for _, what, outcome in trials if outcome}
    hardware = {str(r["hardware"]) for r in found if r.get("hardware")}
    threads = {r["threads"] for r in found if isinstance(r.get("threads"), int)}
    commits = dict.fromkeys(str(start["commit"]) for start in starts if start["commit"])
    return Made(tuple(sorted(seeds)), tuple(commits), tuple(sorted(hardware)), tuple(sorted(threads)))


def rows(sweep: Sweep) -> tuple[list[str], str | None, list[tuple[tuple[str, ...], list[CellResult | None]]]]:
    """The table: names of the row axes, the column axis (None for one axis or an open search), and rows of entries.

    Rows that are not run at all are left out; `left_out` says why.
    """
    column = sweep.space.columns or sweep.axes[-1]
    if sweep.space.search != "grid" or len(sweep.axes) == 1:
        return sweep.axes, None, [(e.labels, [e]) for e in sweep.entries if not e.why]
    at = sweep.axes.index(column)
    columns = sweep.labels(column)
    table: dict[tuple[str, ...], list[CellResult | None]] = {}
    for entry in sweep.entries:
        if entry.labels[at] in columns:
            row = (*entry.labels[:at], *entry.labels[at + 1 :])
            table.setdefault(row, [None] * len(columns))[columns.index(entry.labels[at])] = entry
    kept = [(row, found) for row, found in table.items() if any(e and not e.why for e in found)]
    return [a for a in sweep.axes if a != column], column, kept


def left_out(sweep: Sweep) -> list[str]:
    """One sentence per reason: how many cells are not run."""
    reasons = Counter(entry.why for entry in sweep.entries if entry.why)
    return [f"{count} cells are not run: {why}" for why, count in reasons.items()]


def in_band(entries: Sequence[CellResult], points: float) -> tuple[list[CellResult], list[CellResult]]:
    """Cells with a mean and a number in the paper that are at most `points` apart, and the others."""
    both = [e for e in entries if e.paper is not None and (e.mean is not None or e.ranked is not None)]
    inside = [e for e in both if e.mean is not None and abs(e.mean - (e.paper or 0.0)) <= points]
    return inside, [e for e in both if e not in inside]
