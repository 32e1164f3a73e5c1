"""What a table costs at the paper's size, before it is run: GPU hours, by speeds that were measured on one GPU.

A measured row is a method's training step with the settings of its recipe. A cell of the same method is taken to be as
much slower as its encoder has more to do on the views of a sample (FLOPs), and never faster, since the host and the
memory do not shrink with the encoder. Evaluation, teachers, and data that do not fit in memory are not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from raysurl import plain
from raysurl.data.known import known_of
from raysurl.encoder import encoder_of
from raysurl.errors import InputError
from raysurl.nets.counting import bare, flops
from raysurl.recipe import Recipe, load_recipe
from raysurl.sweep.cells import cells, trial_of
from raysurl.sweep.listing import listed_recipe
from raysurl.sweep.space import Space

HOUR = 3600.0
VECTORS = "vectors, and what was measured are images"
REFUSED = "settings that only the command can name"


@dataclass(frozen=True)
class MeasuredStep:
    """A row of the benchmark of a GPU: its name, samples trained on per second, and the recipe of the step."""

    name: str
    per_second: float
    recipe: Recipe
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Speeds:
    device: str
    rows: tuple[MeasuredStep, ...]
    _shapes: dict[str, nn.Module] = field(default_factory=dict)
    _works: dict[tuple[str, int], int] = field(default_factory=dict)

    def work(self, recipe: Recipe) -> int:
        """FLOPs of the recipe's encoder on all views of a sample, each of its own size."""
        policies = recipe.view_policies().values()
        return sum(self._of_view(recipe, policy.size or recipe.views.size) for policy in policies)

    def _of_view(self, recipe: Recipe, size: int) -> int:
        """Counted once for each encoder and size."""
        encoder = recipe.encoder.model_dump_json()
        if (encoder, size) not in self._works:
            if encoder not in self._shapes:
                with torch.device("meta"):  # of no memory, on which nothing is computed
                    self._shapes[encoder] = bare(encoder_of(recipe))
            view = torch.zeros(1, 3, size, size, device="meta")
            self._works[encoder, size] = flops(self._shapes[encoder], view)
        return self._works[encoder, size]


@dataclass(frozen=True)
class Estimate:
    """`hours` by the name of the row that they are scaled from; `without`: why, and of how many runs there are none."""

    device: str
    runs: int
    samples: int  # trained on, over all epochs and runs
    hours: Mapping[str, float]
    without: Mapping[str, int]

    @property
    def total(self) -> float:
        return sum(self.hours.values())

    @property
    def sentence(self) -> str:
        """`18 runs, 378 million images trained on; an estimate of 4 GPU hours on one NVIDIA H200, scaled …`."""
        left = "; ".join(f"{why} ({n} of {self.runs} runs)" for why, n in self.without.items())
        runs = f"{self.runs} run{'s' if self.runs > 1 else ''}"
        if not self.hours:
            return f"{runs}; GPU hours cannot be estimated: {left}."
        rows = " and ".join(f"“{name}”" for name in self.hours)
        shown = f"{self.total:,.0f}" if self.total >= 10 else f"{self.total:.2g}"
        said = (
            f"{runs}, {self.samples / 1e6:,.0f} million images trained on; an estimate of {shown} GPU hours on one"
            f" {self.device}, scaled by the encoder's FLOPs from the measured speed of {rows}, without evaluation and"
            " teachers"
        )
        return f"{said}. Not estimated: {left}." if left else f"{said}."


def read_speeds(path: Path) -> Speeds:
    """Of `pipelines/benchmark.py gpu`, whose rows of steps say their settings. Raises InputError."""
    try:
        found = plain.read_mapping(path)
        rows = [row for row in found["rows"] if "settings" in row and "images_per_s" in row]
        measured = [
            MeasuredStep(
                str(row["row"]),
                float(row["images_per_s"]),
                load_recipe(row["settings"]),
                tuple(row["settings"]),
            )
            for row in rows
        ]
        if not all(0 < m.per_second < math.inf for m in measured):
            raise ValueError("a speed is no positive number")
        return Speeds(str(found["device"]), tuple(measured))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"speeds={path} is not what pipelines/benchmark.py gpu writes: {why}") from None


def estimate(space: Space, speeds: Speeds) -> Estimate:
    """Of a grid as it was published, each of its cells with each of its seeds; cells that are one run count once."""
    hours: dict[str, float] = {}
    seeds, samples, unmeasured = len(space.seeds), 0, []
    recipes, refused = _recipes(space)
    without: Counter[str] = Counter({REFUSED: refused * seeds})
    for recipe in recipes:
        known = known_of(recipe.data, recipe.recipe)
        if known is None:
            without["data of a size that is not known"] += seeds
            continue
        trained = known.samples * recipe.total_epochs
        samples += trained * seeds
        if row := _nearest(recipe, speeds):
            name, per_second = row
            hours[name] = hours.get(name, 0.0) + seeds * trained / per_second / HOUR
        elif recipe.encoder.name == "mlp":
            without[VECTORS] += seeds
        else:
            unmeasured += [recipe.method.name] * seeds
    if unmeasured:
        without[f"no step of {', '.join(dict.fromkeys(unmeasured))} was measured"] = len(unmeasured)
    runs = seeds * (len(recipes) + refused)
    return Estimate(speeds.device, runs, samples, hours, {why: n for why, n in without.items() if n})


def _recipes(space: Space) -> tuple[list[Recipe], int]:
    """Of the runs of a space, each once; and of how many cells there is none without what a person names."""
    found: dict[str, Recipe] = {}
    refused = 0
    for cell in cells(space):
        try:
            recipe = listed_recipe(space, cell, space.seeds[0], {}, None)
        except InputError:
            refused += 1
        else:
            found.setdefault(trial_of(cell, recipe).id, recipe)
    return list(found.values()), refused


def _nearest(recipe: Recipe, speeds: Speeds) -> tuple[str, float] | None:
    """Name and scaled speed of the row of the same method whose encoder does most nearly as much, the plainest of
    equal ones; None where no step of the method was measured, and for vectors."""
    same = [row for row in speeds.rows if row.recipe.method.name == recipe.method.name]
    if not same or recipe.encoder.name == "mlp":
        return None
    work = speeds.work(recipe)
    shares = [(speeds.work(row.recipe) / work, row) for row in same]
    share, best = min(shares, key=lambda pair: (round(abs(math.log(pair[0])), 6), len(pair[1].settings)))
    return best.name, best.per_second * min(share, 1.0)
