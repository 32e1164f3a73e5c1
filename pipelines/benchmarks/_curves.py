"""The signals of a trial, epoch by epoch, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from raysurl import metrics
from raysurl.sweep.trial import Outcome

LOSS = "train/loss"
# by which features are judged during training -> how a larger value is made a better one
SIGNALS: dict[str, tuple[str, Callable[[float], float]]] = {
    "RankMe": ("health/rankme", lambda value: value),
    "LiDAR": ("health/lidar", lambda value: value),
    "α-ReQ, nearness to 1": ("health/alpha_req", lambda value: -abs(value - 1)),
    "uniformity": ("health/uniformity", lambda value: -value),
    "alignment": ("health/alignment", lambda value: -value),
    "loss": (LOSS, lambda value: -value),
    "kNN (with labels)": ("eval/knn_top1", lambda value: value),
}


@dataclass(frozen=True)
class Curve:
    """`at`: signal of SIGNALS -> its value after each epoch, a larger one better; `final`: the accuracy at the end."""

    values: dict[str, Any]
    state: str
    final: float
    epochs: int  # that it was trained
    seconds: float
    at: dict[str, list[float]]

    def kept(self) -> dict[str, Any]:
        """As it is written: five digits are what can differ."""
        rounded = {name: [float(f"{value:.5g}") for value in values] for name, values in self.at.items()}
        return {**asdict(self), "at": rounded, "seconds": round(self.seconds, 1)}


def read_curve(run: Path, values: Mapping[str, Any], outcome: Outcome, metric: str) -> Curve:
    """Of a trial's directory. After its last epoch it was evaluated for good, whose numbers end the curve.

    A trial that ended early with nothing evaluated has a chance accuracy of 0 and no curve.
    """
    found: dict[str, list[float]] = {name: [] for name in SIGNALS}
    losses: list[float] = []
    for line in metrics.read(run / "metrics.jsonl"):
        losses += [line[LOSS]] if LOSS in line else []
        if metric in line and losses:
            _add(found, {**line, LOSS: fmean(losses)})
            losses = []
    last = {**outcome.metrics, LOSS: fmean(losses)} if losses else {}
    if outcome.state == "finished" and last:
        _add(found, last)
    final = outcome.metrics.get(metric, 0.0)
    return Curve(dict(values), outcome.state, final, outcome.epochs, outcome.seconds, found)


def _add(found: dict[str, list[float]], line: Mapping[str, Any]) -> None:
    for name, (key, better) in SIGNALS.items():
        value = float(line.get(key, math.nan))
        found[name].append(better(value))
