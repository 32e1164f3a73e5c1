"""What to try next: the list of a grid, or Optuna's suggestions, given what earlier starts have already found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysurl import streams
from raysurl.sweep.axis import Axis, labels_of
from raysurl.sweep.cells import Trial, active, cell_of, trial_of
from raysurl.sweep.plan import SweepPlan
from raysurl.sweep.space import SECONDS, Space
from raysurl.sweep.trial import Outcome

REPEATS = 100  # suggestions of trials that are known already before the search gives up finding a new one


class Search(Protocol):
    def next(self) -> Trial | None:
        """The next trial to start, or None when there is none."""

    def tell(self, trial: Trial, outcome: Outcome) -> None: ...


@dataclass
class Grid:
    """Trials in the order of the table."""

    trials: list[Trial]

    def next(self) -> Trial | None:
        return self.trials.pop(0) if self.trials else None

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """A grid is fixed: no outcome changes what comes next."""


@dataclass(frozen=True)
class PastTrial:
    """A trial of an earlier start: what was sampled, axis -> label or number; no outcome where it was interrupted."""

    values: Mapping[str, Any]
    outcome: Outcome | None


@dataclass
class OpenSearch:
    """Optuna's TPE over a space. PastTrial outcomes are told to a new study at each start, and interrupted trials come
    first. Trials that collapsed, diverged or failed have no values: they are told as failures."""

    plan: SweepPlan
    known: Sequence[PastTrial]
    save: Callable[[Trial, Mapping[str, Any]], None]  # called with each new trial's values before it starts
    _study: Any = None
    _open: dict[str, Any] = field(default_factory=dict)  # trial id -> Optuna's trial
    _ended: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        space = self.plan.space
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        started = len(self.known)  # another start of the same search must not repeat the first suggestions
        sampler = optuna.samplers.TPESampler(
            seed=streams.integer(space.seeds[0], "sampler", started),
            constant_liar=True,
            n_startup_trials=min(10, max(4, space.trials // 3)),
        )
        maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [maximize if d == "max" else minimize for d in space.objectives.values()]
        self._study = optuna.create_study(directions=directions, sampler=sampler)
        for known in self.known:
            if known.outcome is None:
                self._study.enqueue_trial(dict(known.values))
            else:
                self._study.add_trial(frozen(space, known.values, known.outcome))
                self._ended.add(self._trial(known.values).id)

    def next(self) -> Trial | None:
        if len(self._ended) + len(self._open) >= self.plan.space.trials:
            return None
        for _ in range(REPEATS):
            asked = self._study.ask()
            values = sample(self.plan.space, asked)
            trial = self._trial(values)
            if trial.id not in self._ended and trial.id not in self._open:
                self._open[trial.id] = asked
                self.save(trial, values)
                return trial
            self._study.tell(asked, state=TrialState.FAIL)
        return None

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        asked = self._open.pop(trial.id)
        self._ended.add(trial.id)
        values = objective_values(self.plan.space, outcome)
        if outcome.state == "finished" and values:
            self._study.tell(asked, values)
        elif outcome.state == "pruned" and len(self.plan.space.objectives) == 1:
            if values:
                asked.report(values[0], outcome.epochs)
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, state=TrialState.FAIL)

    def _trial(self, values: Mapping[str, Any]) -> Trial:
        cell = cell_of(self.plan.space, values)
        return trial_of(cell, self.plan.recipe_of(cell, self.plan.space.seeds[0]))


def distribution(axis: Axis) -> BaseDistribution:
    if axis.integer:
        return IntDistribution(*axis.integer)
    if axis.range:
        return FloatDistribution(*axis.range, log=axis.loguniform is not None)
    return CategoricalDistribution(labels_of(axis))


def sample(space: Space, asked: Any) -> dict[str, Any]:
    """Values of the axes that are active, in their order, from an Optuna trial."""
    values: dict[str, Any] = {}
    for name, axis in space.axes.items():
        if not active(axis, {k: str(v) for k, v in values.items()}):
            continue
        if axis.integer:
            values[name] = asked.suggest_int(name, *axis.integer)
        elif axis.range:
            values[name] = asked.suggest_float(name, *axis.range, log=axis.loguniform is not None)
        else:
            values[name] = asked.suggest_categorical(name, labels_of(axis))
    return values


def objective_values(space: Space, outcome: Outcome) -> list[float] | None:
    """The outcome's value of each objective; None where one is missing or not finite."""
    found = [
        outcome.seconds if name == SECONDS else outcome.metrics.get(name, math.nan)
        for name in space.objectives
    ]
    return found if all(map(math.isfinite, found)) else None


def frozen(space: Space, values: Mapping[str, Any], outcome: Outcome) -> FrozenTrial:
    """A known trial as Optuna's."""
    found = objective_values(space, outcome)
    if outcome.state == "finished" and found:
        ended: dict[str, Any] = {"state": TrialState.COMPLETE, "values": found}
    elif outcome.state == "pruned" and len(space.objectives) == 1:
        ended = {
            "state": TrialState.PRUNED,
            "intermediate_values": {outcome.epochs: found[0]} if found else {},
        }
    else:
        ended = {"state": TrialState.FAIL}
    distributions = {name: distribution(space.axes[name]) for name in values}
    return create_trial(params=dict(values), distributions=distributions, **ended)
