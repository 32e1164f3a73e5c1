"""Fine-tuning, on all labels or a few (raysurl.evaluate.tuning, which all ranks run): what came of it."""

from __future__ import annotations

from collections.abc import Iterator

from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features
from raysurl.evaluate.scores import top, top_names
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels", "tuned"})
OF_PIXELS = False


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """`eval/finetune_top1` in percent, `eval/finetune10_top1` for a tenth of the labels; and the rates that
    were chosen, where there were several."""
    for name, found in (features.tuned or {}).items():
        tuning = settings.tunings[name]
        metric = f"eval/finetune{tuning.percent}"
        yield from top(metric, found.scores, features.test_labels)
        if len(tuning.lr) > 1:
            yield f"{metric}_lr", found.lr
        if len(tuning.head_times) > 1:
            yield f"{metric}_head_times", found.head_times


def names(settings: Evaluation, division: Division) -> list[str]:
    found = []
    for tuning in settings.tunings.values():
        metric = f"eval/finetune{tuning.percent}"
        found += top_names(metric, division.num_classes)
        found += [f"{metric}_lr"] if len(tuning.lr) > 1 else []
        found += [f"{metric}_head_times"] if len(tuning.head_times) > 1 else []
    return found
