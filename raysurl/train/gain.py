"""Why a run may have shown no gain: which of the usual causes its own numbers bear out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysurl.health import GAIN
from raysurl.metrics import Tally
from raysurl.recipe import Recipe

FEW_STEPS = 1000  # optimizer steps; the papers' runs have tens of thousands
FALLEN = 0.02  # of the first epoch's loss, that a loss which has fallen has lost at least
CEILING = 98.0  # percent: a baseline that leaves no room
CHANCE = 3.0  # points above the largest class that are no better than chance
MARK = "no gain:"


@dataclass(frozen=True)
class RunFacts:
    """What is known of a finished run. `labels`: of all its samples, −1 where one has none."""

    recipe: Recipe
    metrics: dict[str, float]
    tally: Tally
    steps: int
    labels: NDArray[np.int64] | None


def explained(findings: list[str], facts: RunFacts) -> list[str]:
    """The findings of raysurl.health, and after one that there was no gain, the causes of it that apply."""
    if not any(said.startswith(MARK) for said in findings):
        return findings
    last = max(i for i, said in enumerate(findings) if said.startswith(MARK))
    collapsed = any("collapse" in said for said in findings)
    return [*findings[: last + 1], sentence(facts, collapsed=collapsed), *findings[last + 1 :]]


def sentence(facts: RunFacts, *, collapsed: bool) -> str:
    """One finding, which names every usual cause that the numbers bear out."""
    found = ["the encoder has collapsed, see there"] if collapsed else []
    found += [
        cause for look in (_warm_up, _short, _loss, _room, _neighbours, _chance) if (cause := look(facts))
    ]
    if found:
        return f"likely causes of no gain: {'; '.join(found)}."
    return (
        "causes of no gain: none of those that numbers show applies (collapse, short or still warming up, a loss that"
        " does not fall, no room above the baseline, k beyond the classes, labels at chance); look at the report's"
        " views: they may keep too little of what the labels are about, or too much."
    )


def _warm_up(facts: RunFacts) -> str:
    warm, epochs = facts.recipe.train.schedule.warmup_epochs, facts.recipe.train.epochs
    if warm * 2 <= epochs:
        return ""
    return (
        f"the learning rate warmed up for {warm:g} of {epochs} epochs; train longer, or set"
        f" train.schedule.warmup_epochs={epochs // 10}"
    )


def _short(facts: RunFacts) -> str:
    if facts.steps >= FEW_STEPS:
        return ""
    epochs = -(-FEW_STEPS * facts.recipe.train.epochs // max(facts.steps, 1))
    return (
        f"only {facts.steps} steps were trained, where some {FEW_STEPS:,} are the least; raise train.epochs (to"
        f" {epochs}, say) or use more images"
    )


def _loss(facts: RunFacts) -> str:
    first, last = facts.tally.first, facts.tally.loss().get("train/loss")
    if first is None or last is None or last <= first - FALLEN * abs(first):
        return ""
    lr = facts.recipe.train.optimizer.lr
    return (
        f"the training loss has not fallen ({first:.3f} in the first epoch, {last:.3f} in the last);"
        f" train.optimizer.lr={lr:g} is too high or too low"
    )


def _room(facts: RunFacts) -> str:
    best = max(facts.metrics.get(f"eval/{name}_knn_top1", 0.0) for name in ("untrained", "pixels"))
    if best < CEILING:
        return ""
    return f"a baseline is at {best:.1f} % already, which leaves no room for a gain of {GAIN} points"


def _neighbours(facts: RunFacts) -> str:
    counts = _counts(facts)
    k = 200  # of eval/knn_top1
    if not len(counts) or counts.min() >= k:
        return ""
    return (
        f"kNN with k = {k} asks for more neighbours than the smallest class has images ({counts.min()}); judge by a"
        f" smaller one, for example eval.knn_k=[{max(int(counts.min()) // 2, 1)}]"
    )


def _chance(facts: RunFacts) -> str:
    counts = _counts(facts)
    names = (
        "eval/knn_top1",
        "eval/untrained_knn_top1",
        "eval/pixels_knn_top1",
        "eval/linear_top1",
        "eval/lbfgs_top1",
    )
    values = [facts.metrics[name] for name in names if name in facts.metrics]
    if not len(counts) or not values:
        return ""
    chance = 100 * counts.max() / counts.sum()
    if max(values) > chance + CHANCE:
        return ""
    return (
        f"all accuracies are at chance ({chance:.1f} %, the share of the largest class): the labels may not be those of"
        " these images, or not visible in them"
    )


def _counts(facts: RunFacts) -> NDArray[np.int64]:
    """Samples of each class that has any."""
    if facts.labels is None or not (facts.labels >= 0).any():
        return np.zeros(0, np.int64)
    counts = np.bincount(facts.labels[facts.labels >= 0])
    return counts[counts > 0].astype(np.int64)
