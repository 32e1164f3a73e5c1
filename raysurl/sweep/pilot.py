"""Whether a small version can show what its table says: the paper's extreme cells, before the others are run.

The rule: a stand-in will do where the means of the two cells that the paper puts highest and lowest lie at least SIGNAL
times as far apart as the seeds of one cell do, by their pooled standard deviation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from scipy.stats import t

from raysurl.errors import InputError, RunError
from raysurl.recipe.schema import Section

if TYPE_CHECKING:
    from raysurl.sweep.results import CellResult, Sweep
    from raysurl.sweep.space import Space

SIGNAL = 3.0
TINY = 1e-9  # points: a difference that is none


class Pilot(Section):
    """What a pilot measured, as it stands in a space under `cpu.pilot` and its like; points of the objective."""

    highest: str  # the cell that the paper puts highest
    lowest: str
    spread: float | None  # by how much the first is above the second here; None where one collapsed
    collapsed: Literal["highest", "lowest"] | None = None
    noise: float = Field(ge=0)  # standard deviation between seeds, pooled over both cells
    seeds: int = Field(ge=2)
    minutes: float = Field(gt=0)  # of a trial
    commit: str

    @property
    def smallest(self) -> float:
        """The smallest difference of two cells of as many seeds that 95 % would tell from none."""
        return float(t.ppf(0.975, 2 * (self.seeds - 1))) * self.noise * math.sqrt(2 / self.seeds)

    @property
    def shows(self) -> bool:
        return self.spread is None or abs(self.spread) >= max(SIGNAL * self.noise, TINY)

    @property
    def sentence(self) -> str:
        if self.spread is None:
            apart = f"{self.collapsed} of both collapsed"
        else:
            apart = (
                f"first is {abs(self.spread):.2f} points {'above' if self.spread >= 0 else 'below'} the other"
            )
        verdict = "can be seen here" if self.shows else f"lie too near, within {SIGNAL:g} times that"
        return (
            f"Pilot of {self.seeds} seeds: of {self.highest} and {self.lowest}, the paper's highest and lowest,"
            f" the {apart}, beside a noise of the seeds of {self.noise:.2f}: they {verdict}. Effects from"
            f" {self.smallest:.2f} points on could be seen; {self.minutes:.1f} min a trial ({self.commit})."
        )


def summary(spaces: Sequence[Space]) -> str:
    """A sentence on all that have been measured at each scale: which small versions can show what their table says."""
    scales = dict.fromkeys(scale for space in spaces for scale in space.pilots)
    said = [
        _of_scale(scale, {space.title: p for space in spaces if (p := space.pilots.get(scale))})
        for scale in scales
    ]
    shown = {space.title for space in spaces if any(pilot.shows for pilot in space.pilots.values())}
    count = sum(1 for space in spaces if space.pilots)
    said += [f"At any of these scales {len(shown)} of {count} tables can be seen."] if len(scales) > 1 else []
    return " ".join(said)


def _of_scale(scale: str, found: dict[str, Pilot]) -> str:
    shown = {title: pilot for title, pilot in found.items() if pilot.shows}
    said = []
    for title, pilot in shown.items():
        wrong = pilot.collapsed == "highest" or (pilot.spread is not None and pilot.spread < 0)
        how = (["by a collapse"] if pilot.spread is None else []) + (["the wrong way round"] if wrong else [])
        said.append(title + (f" ({', '.join(how)})" if how else ""))
    return (
        f"Pilots of the paper's extreme cells at scale={scale} find them {SIGNAL:g} times the seeds' noise apart in"
        f" {len(shown)} of {len(found)} small versions: {'; '.join(said) or 'none'}."
    )


def extremes(
    space: Space, paper: dict[tuple[str, ...], float], run: Collection[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Keys of the cells with the paper's highest and lowest number among those that are run, of the group in which they
    lie widest apart; best first. Raises InputError where there are no two that differ."""
    names = list(space.axes)
    at = names.index(space.group) if space.group in names else None
    groups: dict[str, list[tuple[str, ...]]] = {}
    for key in paper.keys() & set(run):
        groups.setdefault("" if at is None else key[at], []).append(key)
    ends = [(max(keys, key=paper.__getitem__), min(keys, key=paper.__getitem__)) for keys in groups.values()]
    wide = [(paper[high] - paper[low], high, low) for high, low in ends if paper[high] > paper[low]]
    if not wide:
        raise InputError(
            f"space {space.name} has no two cells here with different numbers of the paper, so that pilot=true has"
            " nothing to compare"
        )
    _, high, low = max(wide)
    return [high, low] if space.objectives[space.metric] == "max" else [low, high]


def measured(sweep: Sweep, keys: Sequence[tuple[str, ...]]) -> Pilot:
    """Raises RunError where either cell has fewer than two seeds that finished, unless it collapsed."""
    by_key = {entry.labels: entry for entry in sweep.entries}
    high, low = (by_key[key] for key in keys)
    cells = [cell for cell in (high, low) if not _collapsed(cell)]
    if not cells or any(len(cell.values) < 2 for cell in cells):
        raise RunError(
            f"the pilot needs two seeds that finished of {sweep.name(high)} and of {sweep.name(low)};"
            f" there are {len(high.values)} and {len(low.values)}"
        )
    sign = 1 if sweep.space.objectives[sweep.space.metric] == "max" else -1
    means = [sign * statistics.fmean(cell.values) for cell in cells]
    freedom = sum(len(cell.values) - 1 for cell in cells)
    squares = sum((v - statistics.fmean(cell.values)) ** 2 for cell in cells for v in cell.values)
    outcomes = [outcome for cell in (high, low) for outcome in cell.outcomes]
    return Pilot(
        highest=sweep.name(high),
        lowest=sweep.name(low),
        spread=means[0] - means[1] if len(cells) == 2 else None,
        collapsed=None if len(cells) == 2 else "lowest" if cells == [high] else "highest",
        noise=math.sqrt(squares / freedom),
        seeds=min(len(cell.values) for cell in cells),
        minutes=statistics.fmean(outcome.seconds for outcome in outcomes) / 60,
        commit=" ".join(sweep.made.commits),
    )


def _collapsed(cell: CellResult) -> bool:
    return cell.ranked is not None and math.isinf(cell.ranked)
