"""The linear probe by SGD, Adam or LARS, as the papers train it (raysurl.recipe.probes).

Features are of centre crops and computed once; under a probe with augmentation they are those of another random view in
each epoch, embedded by all workers (`features.augmented`), which is what training through the frozen encoder would see.
Initial weights are N(0, 0.01²) and biases zero, as in ReSSL's probe on ImageNet; the papers state neither.

Several learning rates or weight decays are trained side by side (raysurl.evaluate.heads) on nine tenths of the train
samples, and the one that is most accurate on the held-out tenth is tested: the test samples play no part.

A learning rate fits features of some length: what is stable falls with the square of it, and a ResNet-18 whose norms
do not decay has features of length 10 to 20. Cross-entropy gradients are bounded, so a probe at too large a rate does
not blow up but stops at a poor fit. Probes with `unit_length` are therefore trained on features divided by their mean
length, which keeps angles; `eval/lbfgs_top1` does not depend on a learning rate. Should the loss leave the finite
numbers all the same, a probe of cached features starts again from the same seed at a tenth of the learning rate, and
the one that was used is yielded as `eval/linear_lr`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from raysurl import streams
from raysurl.errors import RunError
from raysurl.evaluate.division import Division, hold_out
from raysurl.evaluate.features import Features
from raysurl.evaluate.heads import Errors, Heads, factor_of, of_labels
from raysurl.evaluate.scores import top, top1, top_names
from raysurl.recipe import Evaluation
from raysurl.recipe.probes import Probe

NEEDS = frozenset({"labels", "augmented"})
OF_PIXELS = False
RESTARTS = 4
HELD_OUT = 0.1  # of the train samples, where there is something to choose
ROWS = 65536  # of features whose classes are told at once

Rows = Callable[[int], Tensor]
"""Features (N, D) of the train samples in an epoch."""

log = logging.getLogger(__name__)


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Top-1 and top-5 accuracy in percent on the test features, and top-1 on the train features it was fitted to."""
    probe = settings.linear_probe
    of_epoch = features.augmented or (lambda epoch: features.train)
    heads, chosen, shrunk = trained(of_epoch, features, probe, seed)
    yield from top("eval/linear", logits(heads, chosen, features.test), features.test_labels)
    fitted = classes(heads, chosen, features.train)
    yield "eval/linear_train_top1", float(top1(fitted, features.train_labels))
    lr, decay = heads.pairs[chosen]
    if len(probe.lr) > 1 or shrunk:
        yield "eval/linear_lr", lr
    if len(probe.weight_decay) > 1:
        yield "eval/linear_weight_decay", decay


def trained(of_epoch: Rows, features: Features, probe: Probe, seed: int) -> tuple[Heads, int, bool]:
    """The heads, which of them is the one to test, and whether the learning rates had to be made smaller."""
    labels = features.train_labels
    choosing = len(probe.lr) * len(probe.weight_decay) > 1
    held_out, kept = hold_out(len(labels), HELD_OUT, seed, "held out") if choosing else (None, None)
    restarts = 0 if features.augmented else RESTARTS
    for attempt in range(restarts + 1):
        tried = probe.model_copy(update={"lr": tuple(lr / 10**attempt for lr in probe.lr)})
        stop, count = not features.augmented, features.num_classes
        heads = fit(of_epoch, labels, tried, num_classes=count, seed=seed, index=kept, stop=stop)
        alive = [head for head, finite in enumerate(heads.finite()) if finite]
        if alive:
            break
        lr = tried.lr[0]
        log.warning("the linear probe diverged at learning rate %g; it starts again at %g", lr, lr / 10)
    else:
        raise RunError(
            f"the linear probe diverged even at eval.linear_lr={tried.lr[0]:g}; the features are too large"
        )
    if held_out is None:
        return heads, 0, attempt > 0
    rows, truth = features.train[held_out], labels[held_out]
    right = {head: float(top1(heads.logits(rows, head).argmax(1), truth)) for head in alive}
    return heads, max(alive, key=right.__getitem__), attempt > 0


def names(settings: Evaluation, division: Division) -> list[str]:
    """Those of every run; one whose probe diverged at first has `eval/linear_lr` besides."""
    probe = settings.linear_probe
    rates = [("linear_lr", probe.lr), ("linear_weight_decay", probe.weight_decay)]
    chosen = [f"eval/{name}" for name, values in rates if len(values) > 1]
    return [*top_names("eval/linear", division.num_classes), "eval/linear_train_top1", *chosen]


def fit(
    of_epoch: Rows,
    labels: Tensor,
    probe: Probe,
    *,
    num_classes: int,
    seed: int,
    index: Tensor | None = None,
    stop: bool = True,
    errors: Errors = of_labels,
) -> Heads:
    """Train a head for each learning rate and weight decay of the probe on labels (N,), of samples `index` if given; on
    what `errors` takes.

    The initial weights and the order of each epoch are drawn from `seed` on the CPU, alike for each device. `stop`:
    when all have diverged; workers that embed each epoch's views go on to the end. Heads of a probe with `unit_length`
    take features as they are, too: the division is in their weights when they come back.
    """
    generator = streams.torch_stream(seed, "linear probe")
    train = of_epoch(0)
    start = (0.01 * torch.randn(num_classes, train.shape[1], generator=generator)).to(labels.device)
    heads = Heads(start, probe, probe.lr, probe.weight_decay, errors)
    count = len(labels) if index is None else len(index)
    per_epoch = -(-count // probe.batch_size)
    length = mean_length(train, index) if probe.unit_length else 1.0
    for epoch in range(probe.epochs):
        train = of_epoch(epoch) if epoch else train
        order = torch.randperm(count, generator=generator)
        order = order if index is None else index[order]
        heads.loss.zero_()
        for batch, part in enumerate(order.split(probe.batch_size)):
            rows = train[part.to(train.device)].to(labels.device) / length
            factor = factor_of(probe, epoch * per_epoch + batch, per_epoch)
            heads.step(rows, labels[part.to(labels.device)], factor)
        if stop and not any(heads.finite()):
            break
    heads.weight /= length
    return heads


def mean_length(rows: Tensor, index: Tensor | None = None) -> float:
    """Of rows (N, D), or of those of `index`; 1 where all are zero."""
    index = torch.arange(len(rows)) if index is None else index
    parts = index.to(rows.device).split(ROWS)
    total = sum(float(rows[part].norm(dim=1).sum(dtype=torch.float64)) for part in parts)
    return total / max(len(index), 1) or 1.0


def logits(heads: Heads, head: int, rows: Tensor) -> Tensor:
    """(n, C) of rows (n, D), a block of which is on the heads' device at a time."""
    return torch.cat([heads.logits(part.to(heads.bias.device), head) for part in rows.split(ROWS)])


def classes(heads: Heads, head: int, rows: Tensor) -> Tensor:
    """(n,) the class of most score of each of rows (n, D), whose scores are not held: of ImageNet they take 5 GB."""
    return torch.cat([logits(heads, head, part).argmax(1) for part in rows.split(ROWS)])
