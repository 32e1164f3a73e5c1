"""Fine-tuning an encoder with a linear classifier on it, by all ranks together (raysurl.recipe.tunings).

A step takes the same samples and views whatever the number of ranks. Letters: Q test samples, C classes, D features.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from raysurl import distributed, sampler, streams
from raysurl.data.source import Source
from raysurl.embed import embed, images_alone
from raysurl.errors import InputError, RunError
from raysurl.evaluate.division import hold_out
from raysurl.evaluate.features import Tuned
from raysurl.evaluate.scores import top1
from raysurl.evaluate.unfinished import Unfinished
from raysurl.nets import dropping, timm_models
from raysurl.nets.eager import SGD, Adam, AdamW
from raysurl.nets.encoders import TwoTrunk
from raysurl.recipe import Recipe
from raysurl.recipe.tunings import Tuning
from raysurl.runtime import Runtime
from raysurl.views.augment import apply
from raysurl.views.draws import draw
from raysurl.views.policies import Policy

HELD_OUT = 0.1  # of the labelled samples, where there is something to choose
MILESTONES = (0.6, 0.8)

Index = NDArray[np.int64]

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Images to class scores (b, C): an encoder, and a linear layer `fc` on its features."""

    def __init__(self, encoder: nn.Module, num_classes: int, *, frozen: bool = False) -> None:
        super().__init__()
        self.encoder, self.frozen = encoder, frozen
        self.fc = nn.Linear(int(encoder.dim), num_classes)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder(x)
        out: Tensor = self.fc(features.float())
        return out


@dataclass(frozen=True)
class Task:
    """What is fine-tuned on: images, which of them may be used, and what they are tested on."""

    recipe: Recipe
    runtime: Runtime
    source: Source
    test_source: Source
    bank: Index
    test: Index
    num_classes: int
    policy: Policy
    unfinished: Unfinished = field(default_factory=Unfinished)

    @property
    def labels(self) -> NDArray[np.int64]:
        assert self.source.labels is not None
        return self.source.labels


def tune(encoder: nn.Module, task: Task, tuning: Tuning) -> Tuned:
    """Every rank calls it. Raises RunError where all rates diverge."""
    seed, runtime = task.recipe.stream_seed, task.runtime
    share = 1.0 if task.recipe.data.labelled else tuning.share
    index = subset(task.labels, task.bank, share, seed)
    pairs = list(product(tuning.lr, tuning.head_times))
    lr, times = pairs[0] if len(pairs) == 1 else choose(encoder, task, tuning, index, pairs)
    found = train(encoder, task, tuning, index, lr, times)
    if not finite(found):
        raise RunError(f"fine-tuning diverged at eval.finetune_lr={lr:g}; use a smaller one")
    scores = embed(found, task.test_source, task.recipe, runtime.device, task.test)
    return Tuned(scores.to(runtime.device), found, lr, times)


def choose(
    encoder: nn.Module, task: Task, tuning: Tuning, index: Index, pairs: list[tuple[float, float]]
) -> tuple[float, float]:
    """The rate and the classifier's factor that are best on a held-out tenth of the samples `index`."""
    split = hold_out(len(index), HELD_OUT, task.recipe.stream_seed, "tuning held out")
    held_out, kept = (index[at.numpy()] for at in split)
    best, chosen = -1.0, None
    for lr, times in pairs:
        model = train(encoder, task, tuning, kept, lr, times)
        if not finite(model):
            continue
        scores = embed(model, task.source, task.recipe, task.runtime.device, held_out)
        right = 0.0
        if task.runtime.rank == 0:
            right = float(top1(scores.argmax(1), torch.from_numpy(task.labels[held_out])))
        right = distributed.broadcast_object(right)
        log.info(
            "fine-tuning at %g, the classifier at %g times that: %.2f %% of those held out", lr, times, right
        )
        if right > best:
            best, chosen = right, (lr, times)
    if chosen is None:
        raise RunError(
            f"fine-tuning diverged at each of eval.finetune_lr={list(tuning.lr)}; use smaller ones"
        )
    return chosen


def subset(labels: NDArray[np.int64], bank: Index, share: float, seed: int) -> Index:
    """That share of the samples `bank` (n,), of each class as nearly as can be and one at least; a seeded draw.

    Raises InputError for fewer than two samples.
    """
    if share < 1:
        keys = streams.raw_bits(len(labels), seed, "few labels")
        kept = []
        for label in np.unique(labels[bank]):
            members = bank[labels[bank] == label]
            count = max(1, round(share * len(members)))
            kept.append(members[np.argsort(keys[members], kind="stable")[:count]])
        bank = np.sort(np.concatenate(kept))
    if len(bank) < 2:
        raise InputError(f"fine-tuning needs at least 2 labelled train samples, not {len(bank)}")
    return bank


def train(
    encoder: nn.Module, task: Task, tuning: Tuning, index: Index, lr: float, times: float
) -> Classifier:
    """A copy of the encoder with a classifier, trained on samples `index`; stopped where it diverges."""
    recipe, device, world = task.recipe, task.runtime.device, distributed.world_size()
    size = max(world, min(tuning.batch_size, len(index)) // world * world)
    seed = streams.integer(recipe.stream_seed, "tuning")
    plan = sampler.plan(np.resize(index, max(len(index), size)), batch_size=size, seed=seed)
    model = classifier(encoder, task, tuning, seed)
    optimizer = optimizer_of(model, tuning, lr * (size / tuning.lr_batch if tuning.lr_batch else 1), times)
    said = {
        "data": recipe.data, "views": recipe.views, "policy": task.policy, "tuning": tuning, "rates": [lr, times],
        "size": size, "seed": seed, "samples": index, "labels": task.labels[index],
    }  # fmt: skip
    training = task.unfinished.training("finetune", said, model, optimizer)
    wrapped = distributed.wrap(model, device, world)
    wrapped.train()
    layers = dropping.layers_that_draw(model)
    per_epoch, in_bf16 = plan.steps_per_epoch, device.type == "cuda" and recipe.precision(device) == "bf16"
    steps = (training.done, tuning.epochs * per_epoch)
    requests = list(plan.requests(*steps, rank=distributed.rank(), world_size=world))
    with training.kept():
        for request, images in zip(requests, task.source.batches(requests, images_alone), strict=True):
            draws = draw(task.policy, size, seed=seed, step=request.step, view="tuning")[request.rows]
            v = recipe.views
            view = apply(task.policy, images, draws, size=v.size, mean=v.mean, std=v.std, device=device)
            labels = torch.from_numpy(task.labels[request.index]).to(device)
            with training.step():
                dropping.draw(layers, seed, request.step, distributed.rank(), device)
                for group in optimizer.param_groups:
                    group["lr"] = group["own"] * factor_of(tuning, request.step, per_epoch)
                with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
                    scores = wrapped(view)
                optimizer.zero_grad()
                F.cross_entropy(scores.float(), labels).backward()
                optimizer.step()
            if not (request.step + 1) % per_epoch and not finite(model):
                break  # on all ranks: their weights are alike
    return model.eval()


def classifier(encoder: nn.Module, task: Task, tuning: Tuning, seed: int) -> Classifier:
    """A copy of the encoder under a linear layer of weights N(0, 0.01²) and biases 0."""
    model = Classifier(copy.deepcopy(encoder), task.num_classes, frozen=tuning.frozen)
    model.encoder.requires_grad_(not tuning.frozen)
    draws = streams.torch_stream(seed, "classifier")
    with torch.no_grad():
        model.fc.weight.normal_(0, 0.01, generator=draws)
        model.fc.bias.zero_()
    return model.to(task.runtime.device)


def finite(model: Classifier) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.fc.parameters())


# -------------------------------------------------------------------- rates


def optimizer_of(model: Classifier, tuning: Tuning, lr: float, times: float) -> torch.optim.Optimizer:
    """A group for each rate; `own` is what the schedule multiplies."""
    depths = depth_of_each(model.encoder)
    most = max(depths.values(), default=0)
    groups: list[dict[str, object]] = []
    for depth in sorted(set(depths.values())):
        those = [p for n, p in model.encoder.named_parameters() if depths[n] == depth and p.requires_grad]
        if those:
            groups.append({"params": those, "own": lr * tuning.layer_decay ** (most + 1 - depth)})
    groups.append({"params": list(model.fc.parameters()), "own": lr * times})
    decay = tuning.weight_decay
    if tuning.optimizer == "sgd":
        return SGD(groups, lr=lr, momentum=tuning.momentum, nesterov=tuning.nesterov, weight_decay=decay)
    kind = {"adam": Adam, "adamw": AdamW}[tuning.optimizer]
    return kind(groups, lr=lr, weight_decay=decay)


BLOCKS = re.compile(r"(?:^|\.)(?:encoder_layer_|layers?\.?|blocks?\.?|features\.|stage)(\d+)\.")


def depth_of_each(encoder: nn.Module) -> dict[str, int]:
    """Parameter name -> which block it lies in, counted from the input: 0 for a stem, and what follows the last block
    belongs to it. Blocks are what timm says of its networks, and what torchvision numbers: layer1 … layer4, features.3,
    encoder_layer_11. Of a pair, each network has its own."""
    if isinstance(encoder, TwoTrunk):
        trunks = {"rgb": encoder.rgb, "sobel": encoder.sobel}
        return {f"{k}.{name}": d for k, trunk in trunks.items() for name, d in depth_of_each(trunk).items()}
    known = timm_models.depths(encoder)
    return _numbered(encoder) if known is None else known


def _numbered(encoder: nn.Module) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for name, _ in encoder.named_parameters():
        found = BLOCKS.search(name)
        numbers[name] = -1 if found is None else int(found.group(1))
    order = {number: 1 + i for i, number in enumerate(sorted({n for n in numbers.values() if n >= 0}))}
    depths, seen = {}, 0
    for name, number in numbers.items():
        if number >= 0:
            seen = max(seen, order[number])
        depths[name] = order[number] if number >= 0 else seen
    return depths


def factor_of(tuning: Tuning, step: int, per_epoch: int) -> float:
    """Of the rates at a step: a linear warm-up, then the schedule over what is left."""
    total, warm = tuning.epochs * per_epoch, tuning.warmup_epochs * per_epoch
    if step < warm:
        return (step + 1) / (warm + 1)
    if tuning.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, total - warm)))
    if tuning.schedule == "step":
        return float(0.1 ** sum(step >= share * total for share in MILESTONES))
    return 1.0
