"""Optuna's figures of the trials of a sweep: history, importance, parallel coordinates, contour, fronts.

They are made by Optuna (optuna.visualization, which imports Plotly) and drawn by the page as its other charts are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from raysurl.report.plotted import figure, words
from raysurl.sweep.results import Sweep
from raysurl.sweep.search import distribution, objective_values
from raysurl.sweep.space import INACTIVE

LEAST = 4  # finished trials from which on importance says anything
Given = dict[str, Any]
HELD = {
    "title",
    "template",
    "width",
    "height",
    "plot_bgcolor",
    "paper_bgcolor",
}  # of a layout, which the page gives


def study_of(sweep: Sweep) -> optuna.Study:
    """The finished trials, in the order in which they began; numbers of a grid as numbers, in their order."""
    maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [maximize if d == "max" else minimize for d in sweep.space.objectives.values()]
    study = optuna.create_study(directions=directions)
    known = {axis: _distribution(sweep, axis) for axis in sweep.axes if axis not in sweep.space.measures}
    for _, what, outcome in sweep.trials:
        values = objective_values(sweep.space, outcome) if outcome and outcome.state == "finished" else None
        if not values:
            continue
        own = {name: _value(known[name], given) for name, given in _given(what).items() if name in known}
        params = {sweep.short(name): value for name, value in own.items()}
        kinds = {sweep.short(name): known[name] for name in own}
        study.add_trial(
            create_trial(state=TrialState.COMPLETE, params=params, distributions=kinds, values=values)
        )
    return study


def _given(what: Mapping[str, Any]) -> dict[str, Any]:
    """What the axes of a trial were set to; of a grid its labels."""
    given = what.get("values") or what["labels"]
    return {name: value for name, value in given.items() if value != INACTIVE}


def _distribution(sweep: Sweep, axis: str) -> BaseDistribution:
    own = sweep.space.axes[axis]
    if own.range is not None or own.integer:
        return distribution(own)
    labels = [label for label in sweep.labels(axis) if label != INACTIVE]
    if len(labels) > 1 and all(map(is_number, labels)):
        values = [float(label) for label in labels]
        return FloatDistribution(min(values), max(values))
    return CategoricalDistribution([words(label) for label in labels] or [""])


def _value(kind: BaseDistribution, given: Any) -> Any:
    if isinstance(kind, CategoricalDistribution):
        return words(str(given))
    return int(given) if isinstance(kind, IntDistribution) else float(given)


def is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def figures(sweep: Sweep) -> dict[str, str]:
    """Name -> chart, of those that the trials allow."""
    study = study_of(sweep)
    done, varied = len(study.get_trials(deepcopy=False)), _varied(study)
    if done < 2:
        return {}
    from optuna import visualization as of  # Plotly's Python, which the page of a run need not wait for

    single: Given = {"target": lambda trial: trial.values[0]} if len(sweep.space.objectives) > 1 else {}
    named: Given = {**single, "target_name": words(sweep.space.metric)}
    title = "Trials, in the order in which they began"
    found = {"history": _chart(title, lambda: of.plot_optimization_history(study, **named))}
    if len(sweep.space.objectives) == 2:
        names = [words(name) for name in sweep.space.objectives]
        title = "Both objectives: what no trial beats in both"
        found["front"] = _chart(title, lambda: of.plot_pareto_front(study, target_names=names))
    if len(varied) > 1:
        make = partial(of.plot_parallel_coordinate, study, params=varied, **named)
        found["parallel"] = _chart("Parallel coordinates", make, "a line for each finished trial")
    if len(varied) > 1 and done >= LEAST:
        by: Given = {"evaluator": optuna.importance.FanovaImportanceEvaluator(seed=0), "params": varied}
        note = f"share of the variance of {sweep.space.metric} that an axis explains (fANOVA); rough for few trials"
        make = partial(of.plot_param_importances, study, **by, **named)
        found["importance"] = _chart("Importance", make, note)
        first = (_most(study, by, single) or varied)[:2]
        make = partial(of.plot_contour, study, params=first, **named)
        found["contour"] = _chart("Contour of the two axes that matter most", make, "points are trials")
    return {name: html for name, html in found.items() if html}


def _varied(study: optuna.Study) -> list[str]:
    """Axes that all trials have, with two values or more."""
    trials = study.get_trials(deepcopy=False)
    shared = [name for name in (trials[0].params if trials else ()) if all(name in t.params for t in trials)]
    return [name for name in shared if len({str(t.params[name]) for t in trials}) > 1]


def _most(study: optuna.Study, by: Mapping[str, Any], single: Mapping[str, Any]) -> list[str]:
    try:
        return list(optuna.importance.get_param_importances(study, **by, **single))
    except (ValueError, RuntimeError):  # all trials alike
        return []


def _chart(title: str, make: Callable[[], Any], note: str = "") -> str:
    """Optuna's figure in the style of the page; "" where the trials do not allow it."""
    try:
        made = json.loads(make().to_json())
    except (ValueError, RuntimeError):  # all trials alike
        return ""
    layout = {key: value for key, value in made["layout"].items() if key not in HELD}
    for trace in made["data"]:
        if trace["type"] == "bar":
            trace["marker"] = {"color": "var(--s1)"}
    return figure(title, made["data"], layout, note=note, height=340, kind="large")
