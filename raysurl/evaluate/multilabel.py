"""The linear probe of images that show several classes: a logistic regression for each class (MV-MR, Table 3).

It is trained as the probe of `eval.probe`, `eval.linear_…` says, with binary cross-entropy, the mean over images of the
sum over classes; a class that is not to be judged in an image has no part in it. Several rates or decays are trained
side by side on nine tenths of the train images, and the one of the best mean average precision on the last tenth is
tested: the test images play no part.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from raysurl.errors import RunError
from raysurl.evaluate import linear
from raysurl.evaluate.division import Division, hold_out
from raysurl.evaluate.features import Features
from raysurl.evaluate.heads import of_tags
from raysurl.evaluate.precision import Ranking, precision_names, precisions
from raysurl.recipe import Evaluation

NEEDS = frozenset({"tags", "augmented"})
OF_PIXELS = False


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """`eval/multilabel_map` and `eval/multilabel_map11` in percent, see raysurl.evaluate.precision."""
    assert features.tags is not None
    tags, truth = features.tags
    probe = settings.linear_probe
    choosing = len(probe.lr) * len(probe.weight_decay) > 1
    held_out, kept = hold_out(len(tags), linear.HELD_OUT, seed, "held out") if choosing else (None, None)
    of_epoch = features.augmented or (lambda epoch: features.train)
    heads = linear.fit(
        of_epoch, tags, probe, num_classes=tags.shape[1], seed=seed, index=kept,
        stop=not features.augmented, errors=of_tags,
    )  # fmt: skip
    alive = [head for head, finite in enumerate(heads.finite()) if finite]
    if not alive:
        raise RunError(
            f"the multilabel probe diverged at eval.linear_lr={min(probe.lr):g}; use a smaller one"
        )
    chosen = alive[0]
    if held_out is not None:
        rows, known = features.train[held_out], tags[held_out]

        def judged(head: int) -> float:
            return Ranking(heads.logits(rows.to(tags.device), head), known).mean("map")

        chosen = max(alive, key=judged)
    scores: Tensor = linear.logits(heads, chosen, features.test)
    yield from precisions("eval/multilabel", scores, truth, seed=seed)
    for name, values, value in zip(
        ("lr", "weight_decay"), (probe.lr, probe.weight_decay), heads.pairs[chosen], strict=True
    ):
        if len(values) > 1:
            yield f"eval/multilabel_{name}", value


def names(settings: Evaluation, division: Division) -> list[str]:
    probe = settings.linear_probe
    several = [n for n, values in (("lr", probe.lr), ("weight_decay", probe.weight_decay)) if len(values) > 1]
    return [*precision_names("eval/multilabel"), *(f"eval/multilabel_{name}" for name in several)]
