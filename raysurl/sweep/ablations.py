"""The papers' tables as cards: what each concludes, what was seen of that here, what it cost, and what waits for GPUs.

docs/ablations.md and `raysurl ablations` are made of these, of the same kept tables.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raysurl.sweep import tables
from raysurl.sweep.agreement import Agreement
from raysurl.sweep.axis import labels_of, settings_of
from raysurl.sweep.cells import ROOT
from raysurl.sweep.claims import WORDS
from raysurl.sweep.full_size import Estimate, Speeds, estimate, read_speeds
from raysurl.sweep.kept import never_run, read_folder
from raysurl.sweep.results import Sweep, left_out
from raysurl.sweep.space import SMALL, SPACES, Space, at_scale, read_space

PAPERS = ("ressl", "rcl", "superand", "mvmr", "genurl")  # a space is named after its paper first
OTHERS = "Other sweeps"
NOT_RUN = "not run"
KINDS = {**WORDS, NOT_RUN: NOT_RUN}  # of a claim -> how it is said


@dataclass(frozen=True)
class Said:
    """A claim of a paper, its verdict (a key of KINDS), and the numbers of that."""

    claim: str
    kind: str
    numbers: str = ""


@dataclass(frozen=True)
class Card:
    """A table: `published`, None for a space that is not packaged; its sweep, of no trials where it was not run."""

    published: Space | None
    sweep: Sweep
    full: Estimate | None = None

    @property
    def name(self) -> str:
        return self.sweep.space.name

    @property
    def title(self) -> str:
        return self.sweep.space.title

    @property
    def of_paper(self) -> bool:
        return self.published is not None and is_of_paper(self.published)

    @property
    def group(self) -> str:
        """The paper, as the table's title begins."""
        return self.title.partition(",")[0] if self.of_paper else OTHERS

    @property
    def ran(self) -> bool:
        return bool(self.sweep.ended)

    @cached_property
    def claims(self) -> list[Said]:
        if not self.ran:
            return [Said(claim.says, NOT_RUN) for claim in self.sweep.space.claims]
        return [Said(v.claim.says, v.verdict, v.numbers) for v in self.sweep.verdicts()]

    @cached_property
    def agreements(self) -> list[Agreement]:
        """How the order of the cells agrees with the paper's."""
        return self.sweep.agreements()

    @property
    def facts(self) -> list[str]:
        """Agreement with the paper's order; what was run, on what, and what that took; what was left out."""
        if self.ran:
            agreements = [a.sentence(self.sweep.space.band.spearman) for a in self.agreements]
            return [*agreements, *tables.facts(self.sweep), *left_out(self.sweep)]
        space, published = self.sweep.space, self.published
        found = ["Not run."]
        found += ["The paper's numbers were read off a plot, which prints none."] * space.read_from_figure
        found += [f"The paper says: {space.says}."] if space.says else []
        scale = published.usual_scale if published else "full"
        if published is None or scale == "full":
            return found
        return [*found, f"The small version: {published.stands_in(scale)}.", *tables.pilots(published, scale)]

    @property
    def commands(self) -> list[str]:
        """What runs it as it was run, or would be, in its other small versions, and at the paper's size."""
        space, known = self.published or self.sweep.space, self.published is not None
        first = self.sweep.scale if self.ran else space.usual_scale
        others = [scale for scale in SMALL if space.small(scale)]
        scales = dict.fromkeys([first, *others, "full"]) if known else {first: None}
        return [command(space, scale) for scale in scales]

    @property
    def waits(self) -> str:
        """What of it waits for GPUs, at the paper's size: its recipe and the hours; "" where nothing does."""
        if self.full is None or self.published is None or (self.ran and self.sweep.scale == "full"):
            return ""
        return f"At the paper's size, recipe {self.published.recipe}: {self.full.sentence}"


def cards(results: Path, speeds: Path | None) -> list[Card]:
    """A card for each table of the papers, and for each other sweep of a folder. Raises InputError.

    `speeds`: what a benchmark of a GPU wrote; without it GPU hours are not estimated.
    """
    ran: dict[str, list[Sweep]] = {}
    for sweep in read_folder(results):
        ran.setdefault(sweep.space.name, []).append(sweep)
    measured = read_speeds(speeds) if speeds else None
    packaged = [read_space(path.stem) for path in SPACES.glob("*.yaml")]
    found = [
        card
        for space in sorted(packaged, key=_place)
        if is_of_paper(space) or space.name in ran
        for card in _of_space(space, ran.pop(space.name, []), measured)
    ]
    return [*found, *(Card(None, sweep) for sweeps in ran.values() for sweep in sweeps)]


def _of_space(space: Space, sweeps: Sequence[Sweep], speeds: Speeds | None) -> list[Card]:
    full = estimate(space, speeds) if speeds and is_of_paper(space) else None
    return [Card(space, sweep, full) for sweep in sweeps or [never_run(space)]]


def is_of_paper(space: Space) -> bool:
    return bool(space.paper or space.says or space.claims)


def _place(space: Space) -> tuple[Any, ...]:
    """Of a paper in the order of PAPERS, then the others; tables by their numbers."""
    paper = space.name.partition("_")[0]
    at = PAPERS.index(paper) if paper in PAPERS and is_of_paper(space) else len(PAPERS)
    numbered = [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", space.name)]
    return at, "_fig" in space.name, numbered


def command(space: Space, scale: str) -> str:
    """The line that runs a space at a scale."""
    kind = f"reproduce {space.name}" if space.paper else f"sweep space={space.name}"
    return f"raysurl {kind} scale={scale}{' data_root=ROOT' if _needs_root(space, scale) else ''}"


def _needs_root(space: Space, scale: str) -> bool:
    """Whether the data of some cell are looked for where the command says."""
    small, missing = at_scale(space, scale)
    used = [small.fixed]
    used += [
        settings_of(name, axis, label)
        for name, axis in small.axes.items()
        for label in labels_of(axis)
        if label not in missing.get(name, ())
    ]
    return ROOT in json.dumps(used)


# -------------------------------------------------------------------- all of them


def counts(found: Sequence[Card]) -> dict[str, int]:
    """Kind of verdict -> claims, in the order of KINDS; those of a table that was run at several scales once, as its
    largest has it."""
    order = (*SMALL, "full")
    largest = {
        card.name: card
        for card in sorted(found, key=lambda card: order.index(card.sweep.scale) if card.ran else -1)
    }
    kinds = Counter(said.kind for card in largest.values() for said in card.claims)
    return {kind: kinds[kind] for kind in KINDS}


@dataclass(frozen=True)
class Cost:
    """Of the papers' tables: how many there are and were run, with how many trials, and what those took."""

    tables: int
    ran: int
    trials: int
    seconds: float


def cost(found: Sequence[Card]) -> Cost:
    of_papers = [card for card in found if card.of_paper]
    ran = [card for card in of_papers if card.ran]
    trials, seconds = sum(len(card.sweep.ended) for card in ran), sum(card.sweep.seconds for card in ran)
    return Cost(len({card.name for card in of_papers}), len({card.name for card in ran}), trials, seconds)


def total(found: Sequence[Card]) -> str:
    """Claims by verdict, tables that were run, and what all of that took."""
    claims, took = counts(found), cost(found)
    said = ", ".join(f"{number} {KINDS[kind]}" for kind, number in claims.items())
    return (
        f"Of {sum(claims.values())} claims: {said}. {took.ran} of {took.tables} tables were run:"
        f" {took.trials} trials, {tables.hours(took.seconds)} of training and evaluation."
    )


def grouped(found: Sequence[Card]) -> dict[str, list[Card]]:
    """Cards by paper."""
    groups: dict[str, list[Card]] = {}
    for card in found:
        groups.setdefault(card.group, []).append(card)
    return groups


def as_data(found: Sequence[Card]) -> dict[str, Any]:
    """What docs/building/generated.py makes the page of the docs of: plain values, by the name of the paper."""
    by_paper: Mapping[str, list[Card]] = {
        paper: [c for c in found if c.of_paper and c.name.startswith(f"{paper}_")] for paper in PAPERS
    }
    return {
        "total": total(found),
        "tables": {paper: [_plain(card) for card in some] for paper, some in by_paper.items()},
    }


def _plain(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "title": card.title,
        "claims": [[said.claim, KINDS[said.kind], said.numbers] for said in card.claims],
        "facts": [*card.facts, *filter(None, [card.waits])],
        "commands": card.commands,
    }
