"""How well signals of the first epochs rank trials as they end, and which axis of a search matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from benchmarks._curves import SIGNALS, Curve

from raysurl import intervals, streams
from raysurl.sweep.agreement import rank_correlations
from raysurl.sweep.search import frozen
from raysurl.sweep.space import Space
from raysurl.sweep.trial import Outcome

SHARES = (0.25, 0.5, 1.0)  # of the epochs, after which signals are compared
DRAWS = 1000  # of the bootstrap over trials
RESAMPLED = 30  # bootstrap samples whose importance is taken


def agreements(curves: Sequence[Curve]) -> dict[str, dict[str, list[float]]]:
    """Signal -> share of the epochs -> Spearman's rank correlation with the accuracy at the end, over the trials, and
    its interval of 95 % (bootstrap over trials). Of a trial that ended before, its last value counts."""
    total = max(curve.epochs for curve in curves)
    known = [curve for curve in curves if curve.at["RankMe"]]
    finals = np.array([curve.final for curve in known])
    rng = streams.numpy_stream(0, "agreement")
    # the trials as they are, and bootstrap samples of them, a row each
    draws = np.vstack([np.arange(len(known)), rng.integers(0, len(known), (DRAWS, len(known)))])
    found: dict[str, dict[str, list[float]]] = {}
    for name in SIGNALS:
        for share in SHARES:
            values = np.array([at_epoch(curve, name, round(share * total)) for curve in known])
            whole, *drawn = rank_correlations(values[draws], finals[draws])
            low, high = intervals.percentiles([value for value in drawn if np.isfinite(value)] or [0.0])
            found.setdefault(name, {})[str(share)] = [round(float(value), 3) for value in (whole, low, high)]
    return found


def at_epoch(curve: Curve, name: str, epoch: int) -> float:
    """The signal after an epoch, counted from 1, or the last one there is."""
    values = curve.at[name]
    return values[min(epoch, len(values)) - 1]


def importances(space: Space, curves: Sequence[Curve], resampled: int = RESAMPLED) -> dict[str, list[float]]:
    """Axis -> the share of the variance of the accuracy that it explains (fANOVA; Hutter et al. 2014), and its interval
    of 95 % over bootstrap samples of the trials."""
    ended = [curve for curve in curves if curve.state == "finished"]
    rng = streams.numpy_stream(0, "importance")
    samples = [
        ended,
        *([ended[i] for i in rng.integers(0, len(ended), len(ended))] for _ in range(resampled)),
    ]
    shares = [_importance(space, sample) for sample in samples]
    found = {}
    for axis in space.axes:
        low, high = intervals.percentiles([share[axis] for share in shares[1:]])
        found[axis] = [round(value, 3) for value in (shares[0][axis], low, high)]
    return found


def _importance(space: Space, curves: Sequence[Curve]) -> dict[str, float]:
    study = optuna.create_study(direction="maximize")
    metric = space.metric
    study.add_trials(
        [frozen(space, curve.values, Outcome("finished", metrics={metric: curve.final})) for curve in curves]
    )
    names = list(space.axes)
    varied = [name for name in names if len({str(curve.values[name]) for curve in curves}) > 1]
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found: dict[str, Any] = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    return {name: float(found.get(name, 0.0)) for name in names}
