"""Linear probe by SGD on cached features (ReSSL, section "linear evaluation" for small data sets).

100 epochs, SGD with momentum 0.9 and no weight decay, learning rate 10, ×0.1 after 60 % and 80 % of the
epochs, batch 256, pooled features of centre crops. The paper states neither the batch nor the initialisation:
batch 256 and weights N(0, 0.01²) with zero bias are used (the latter as in the authors' ImageNet probe).

Learning rate 10 is far above what large features can bear. Cross-entropy gradients are bounded, so the probe
then does not blow up but stops at a poor fit: `eval/linear_train_top1` shows it, and `eval/lbfgs_top1` does
not depend on a learning rate. Should the loss leave the finite numbers all the same, the probe starts again
from the same seed at a tenth of the learning rate, and the one that was used is yielded as `eval/linear_lr`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl import streams
from raysurl.errors import RunError
from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features, top1
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels"})
OF_PIXELS = False
MOMENTUM = 0.9
MILESTONES = (0.6, 0.8)  # fractions of the epochs after which the learning rate falls to a tenth
RESTARTS = 4

log = logging.getLogger(__name__)


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Top-1 accuracy in percent on the test features, and on the train features the probe was fitted to."""
    lr = settings.linear_lr
    for _ in range(RESTARTS + 1):
        probe = fit(
            features.train,
            features.train_labels,
            num_classes=features.num_classes,
            epochs=settings.linear_epochs,
            lr=lr,
            batch_size=settings.linear_batch_size,
            seed=seed,
        )
        if probe is not None:
            break
        log.warning("the linear probe diverged at learning rate %g; it starts again at %g", lr, lr / 10)
        lr /= 10
    else:
        raise RunError(
            f"the linear probe diverged even at eval.linear_lr={lr * 10:g}; the features are too large"
        )
    weight, bias = probe
    predict = F.linear
    yield "eval/linear_top1", top1(predict(features.test, weight, bias).argmax(1), features.test_labels)
    yield (
        "eval/linear_train_top1",
        top1(predict(features.train, weight, bias).argmax(1), features.train_labels),
    )
    if lr != settings.linear_lr:
        yield "eval/linear_lr", lr


def names(settings: Evaluation, division: Division) -> list[str]:
    """Those of every run; one whose probe diverged at first has `eval/linear_lr` besides."""
    return ["eval/linear_top1", "eval/linear_train_top1"]


def fit(
    train: Tensor, labels: Tensor, *, num_classes: int, epochs: int, lr: float, batch_size: int, seed: int
) -> tuple[Tensor, Tensor] | None:
    """Fit weight (C, D) and bias (C,) to train (N, D), labels (N,); None if the loss stops being finite.

    The initial weights and the order of each epoch are drawn from `seed` on the CPU, alike for each device.
    """
    generator = streams.torch_stream(seed, "linear probe")
    weight = (0.01 * torch.randn(num_classes, train.shape[1], generator=generator)).to(train.device)
    bias = torch.zeros(num_classes, device=train.device)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM)
    drops = [math.floor(epochs * fraction) for fraction in MILESTONES]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)
    for _ in range(epochs):
        total = torch.zeros((), device=train.device)
        for index in torch.randperm(len(train), generator=generator).to(train.device).split(batch_size):
            loss = F.cross_entropy(F.linear(train[index], weight, bias), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        if not torch.isfinite(total):
            return None
        schedule.step()
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        return None
    return weight.detach(), bias.detach()
