"""When and on what a run is evaluated; the protocols themselves are in raysurl.evaluate.

Probes and health signals are of the backbone's features. What kNN compares is `eval.features`: the backbone's
features; the method's embedding; or `memory`, the embedding of a test image against the vectors that memory holds
of the training samples (Super-AND's headline). In the last two cases the backbone's kNN is logged beside it, and
both have a baseline of their own quantity: the untrained method's embedding, which memory would begin with, and the
untrained backbone (`eval/untrained_knn_top1`, `eval/untrained_backbone_knn_top1`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysurl import health
from raysurl.data.planetoid import VALIDATION
from raysurl.data.source import Source
from raysurl.embed import Augmented, embed, pixels
from raysurl.encoder import encoder_of
from raysurl.errors import InputError
from raysurl.evaluate import (
    Features,
    Gains,
    NodeFeatures,
    distances,
    divide,
    evaluate,
    gains_of,
    needs,
    of_pixels,
    pixel_features,
    serves,
)
from raysurl.evaluate.augmenting import alignment, disturbing, policy_of
from raysurl.evaluate.detecting import detected
from raysurl.evaluate.division import embedding_points, some
from raysurl.evaluate.features import Tuned
from raysurl.evaluate.headline import of_the_backbone
from raysurl.evaluate.tuning import Task, tune
from raysurl.evaluate.unfinished import Unfinished
from raysurl.recipe import Recipe
from raysurl.runtime import Runtime


@dataclass(frozen=True)
class Networks:
    """What is evaluated: the backbone, and what `eval.features` names where that is something else."""

    encoder: nn.Module
    embedder: nn.Module | None = None
    remembered: Tensor | None = None  # (N, D) of the training samples
    texts: Tensor | None = None  # (C, D) of the class names, by a teacher's text tower

    def to(self, device: torch.device) -> Networks:
        embedder = self.embedder and self.embedder.to(device)
        remembered = None if self.remembered is None else self.remembered.to(device)
        return Networks(self.encoder.to(device), embedder, remembered, self.texts)


@dataclass(frozen=True)
class Evaluated:
    """The metrics, and what they are of: the backbone's features, of the samples `bank` (n,). Nothing beyond rank 0."""

    metrics: dict[str, float]
    features: Features | None
    bank: NDArray[np.int64]
    gains: Gains  # over the baselines
    classifiers: Mapping[str, nn.Module] = field(default_factory=dict)  # that were fine-tuned, by name
    # of distances, see that protocol
    histograms: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


def labels_to_learn(source: Source, eval_source: Source | None) -> NDArray[np.int64] | None:
    """The labels (N,) of a supervised row: −1 where the test set is a part of the training samples, for that part."""
    if source.labels is None or eval_source is not None:
        return source.labels
    held_out = divide(source.labels, np.flatnonzero(source.readable), source.split).test
    labels: NDArray[np.int64] = source.labels.copy()
    labels[held_out] = -1
    return labels


class Evaluator:
    """Embeds the labelled train samples (the bank) and the test samples and runs protocols on rank 0.

    Without `eval_source` every tenth labelled training sample of a class is in the test set: the encoder has seen its
    image, never its label, and the notes say so. Without labels only the protocols that need none are run.
    """

    def __init__(
        self,
        recipe: Recipe,
        runtime: Runtime,
        source: Source,
        eval_source: Source | None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.recipe, self.runtime, self.unfinished = recipe, runtime, unfinished or Unfinished()
        self.source, self.test_source = source, eval_source or source
        self.notes: list[str] = []
        test = None if eval_source is None else np.flatnonzero(eval_source.readable)
        usable = np.flatnonzero(source.readable)
        self.division = division = divide(source.labels, usable, source.split, test, tags=source.tags)
        self.bank, self.test = division.bank, division.test
        if division.note:
            self.notes.append(division.note)
        self.num_classes = 0
        if not len(self.test) or division.num_tags:
            return
        labels, test_labels = source.labels, self.test_source.labels
        assert labels is not None
        if test_labels is None:
            raise InputError("the data of data.eval_path has no labels; evaluation needs a labelled test set")
        self.num_classes = int(max(labels.max(), test_labels.max())) + 1

    def features(
        self, encoder: nn.Module, bank: NDArray[np.int64], remembered: Tensor | None = None
    ) -> Features | None:
        """Features of the bank and the test set on rank 0; None on the other ranks, which help to embed.

        The bank's are the rows of `remembered` (N, D) where that is given.
        """
        device = self.runtime.device
        train = (
            embed(encoder, self.source, self.recipe, device, bank) if remembered is None else remembered[bank]
        )
        test = (
            embed(encoder, self.test_source, self.recipe, device, self.test) if len(self.test) else train[:0]
        )
        if self.runtime.rank:
            return None
        return self._labelled(bank, train.to(device), test.to(device))

    def online(self, trained: Networks) -> dict[str, float]:
        """kNN and health during training."""
        bank = self.bank[some(len(self.bank), self.recipe.eval.online_bank, 0, "online bank").numpy()]
        features, headline = self.features(trained.encoder, bank), self._headline(trained, bank)
        aligned = self._aligned(trained)
        if features is None:
            return {}
        metrics = evaluate(features, self.recipe.eval, protocols=["knn"])
        return metrics | headline | health.signals(features.train) | aligned

    def final(self, trained: Networks, untrained_embedder: nn.Module | None = None) -> Evaluated:
        """All protocols, beside the untrained encoder and raw pixels.

        `untrained_embedder`: beside it stands what kNN compares, where that is not the backbone.
        """
        settings, seed = self.recipe.eval, self.recipe.stream_seed
        features, headline = self.features(trained.encoder, self.bank), self._headline(trained, self.bank)
        fresh = encoder_of(self.recipe).to(self.runtime.device) if settings.baselines else None
        untrained = self.features(fresh, self.bank) if fresh else None
        untrained_headline = None
        if fresh and trained.embedder is not None and untrained_embedder is not None:
            untrained_headline = self.features(untrained_embedder.to(self.runtime.device), self.bank)
        nodes, aligned = self._nodes(trained.encoder), self._aligned(trained)
        judged = [encoder for encoder in (trained.encoder, fresh) if encoder]
        asked = [self._asked(encoder) for encoder in judged]
        if features is None:
            self._help([each["augmented"] for each in asked])
            return Evaluated({}, None, self.bank, {})
        features = replace(features, inputs=self._inputs(), nodes=nodes, texts=trained.texts, **asked[0])
        metrics = evaluate(features, settings, seed=seed) | health.signals(features.train) | aligned
        if headline:
            backbone = evaluate(features, settings, protocols=["knn"], prefix="backbone", seed=seed)
            metrics |= backbone | headline
        if untrained is not None:
            untrained = replace(untrained, **asked[1])
            found = evaluate(untrained, settings, prefix="untrained", seed=seed)
            metrics |= of_the_backbone(found) if headline else found
        if untrained_headline is not None:
            metrics |= evaluate(
                untrained_headline, settings, protocols=["knn"], prefix="untrained", seed=seed
            )
        histograms = (
            {"encoder": distances.histograms(features, seed)} if "distances" in settings.protocols else {}
        )
        if settings.baselines and self.num_classes:
            raw = self._pixels()
            histograms |= {"pixels": distances.histograms(raw, seed)} if histograms else {}
            judging = of_pixels(settings.protocols)
            metrics |= evaluate(raw, settings, protocols=judging, prefix="pixels", seed=seed)
        classifiers = {name: found.classifier for name, found in asked[0]["tuned"].items()}
        return Evaluated(metrics, features, self.bank, gains_of(metrics), classifiers, histograms)

    def _aligned(self, trained: Networks) -> dict[str, float]:
        return alignment(trained.encoder, self.recipe, self.source, self.runtime.device, self.bank)

    def _headline(self, trained: Networks, bank: NDArray[np.int64]) -> dict[str, float]:
        """kNN of what `eval.features` names, where that is not the backbone."""
        if trained.embedder is None:
            return {}
        features = self.features(trained.embedder, bank, trained.remembered)
        return {} if features is None else evaluate(features, self.recipe.eval, protocols=["knn"])

    def _asked(self, encoder: nn.Module) -> dict[str, Any]:
        """What protocols ask of an encoder beyond its features, as `Features` names it. All ranks call it."""
        return {
            "augmented": self._augmented(encoder),
            "tuned": self._tuned(encoder),
            "detected": self._detected(encoder),
            "disturbed": self._disturbed(encoder),
        }

    def _augmented(self, encoder: nn.Module) -> Callable[[int], Tensor] | None:
        """Epoch -> features of random views of the bank, where a protocol is to be trained on such. All ranks call it,
        epoch by epoch."""
        if (
            self.recipe.eval.linear_probe.augment is None
            or "augmented" not in self._needs
            or not len(self.test)
        ):
            return None
        seen = policy_of(self.recipe, self.recipe.eval.linear_probe.augment)
        policy = seen.model_copy(update={"size": None})

        def of_epoch(epoch: int) -> Tensor:
            view, device = Augmented(policy, epoch), self.runtime.device
            return embed(encoder, self.source, self.recipe, device, self.bank, view)

        return of_epoch

    def _tuned(self, encoder: nn.Module) -> dict[str, Tuned]:
        """The encoder fine-tuned in each way that is asked for. All ranks call it."""
        if "tuned" not in self._needs or not self.num_classes:
            return {}
        found = {}
        for name, tuning in self.recipe.eval.tunings.items():
            policy = policy_of(self.recipe, tuning.augment).model_copy(update={"size": None})
            given = (self.recipe, self.runtime, self.source, self.test_source)
            task = Task(*given, self.bank, self.test, self.num_classes, policy, self.unfinished)
            found[name] = tune(encoder, task, tuning)
        return found

    def _detected(self, encoder: nn.Module) -> dict[str, float]:
        if "instances" not in self._needs or not len(self.test):
            return {}
        return detected(encoder, self.recipe, self.runtime, self.source, self.test_source, self.unfinished)

    def _disturbed(self, encoder: nn.Module) -> dict[str, Tensor] | None:
        """Features (Q, D) of the test images augmented by each policy. All ranks call it."""
        if "disturbed" not in self._needs or not self.num_classes:
            return None
        device, given = self.runtime.device, (self.test_source, self.recipe, self.runtime.device, self.test)
        views = {name: disturbing(self.recipe, name) for name in self.recipe.eval.neighbours_views}
        return {name: embed(encoder, *given, view).to(device) for name, view in views.items()}

    def _help(self, views: Sequence[Callable[[int], Tensor] | None]) -> None:
        """Embed on this rank what rank 0 asks for while it runs the protocols."""
        for of_epoch in filter(None, views):
            for epoch in range(self.recipe.eval.linear_probe.epochs):
                of_epoch(epoch)

    def _pixels(self) -> Features:
        train = pixels(self.source, self.recipe, self.bank)
        test = pixels(self.test_source, self.recipe, self.test)
        labels = self._labels(self.bank, train.device)
        found = pixel_features(train, labels[0], test, labels[1], self.num_classes)
        if "nodes" not in self._needs:
            return found
        return replace(
            found, nodes=self._labelled_nodes(pixels(self.source, self.recipe, self._all_labelled))
        )

    def _inputs(self) -> Tensor | None:
        """Raw values of samples of the bank, for the protocol that compares embeddings with them."""
        settings = self.recipe.eval
        if "inputs" not in self._needs:
            return None
        chosen = embedding_points(len(self.bank), settings.embedding_points).numpy()
        return pixels(self.source, self.recipe, self.bank[chosen])

    def _nodes(self, encoder: nn.Module) -> NodeFeatures | None:
        """All labelled samples, for the protocol that divides them itself. Every rank calls it."""
        if "nodes" not in self._needs or not self.num_classes:
            return None
        found = embed(encoder, self.source, self.recipe, self.runtime.device, self._all_labelled)
        return None if self.runtime.rank else self._labelled_nodes(found)

    @property
    def _needs(self) -> frozenset[str]:
        """What those protocols ask for that are run on these data."""
        asked = self.recipe.eval.protocols
        return needs(*(name for name in asked if serves(self.division, needs(name))))

    @property
    def _all_labelled(self) -> NDArray[np.int64]:
        assert self.source.labels is not None
        return np.flatnonzero(self.source.readable & (self.source.labels >= 0))

    def _labelled_nodes(self, features: Tensor) -> NodeFeatures:
        assert self.source.labels is not None
        which, split = self._all_labelled, self.source.split
        parts = None if split is None else torch.from_numpy(split[which])
        return NodeFeatures(features.cpu(), torch.from_numpy(self.source.labels[which]), parts)

    def _labelled(self, bank: NDArray[np.int64], train: Tensor, test: Tensor) -> Features:
        if not len(self.test):
            return Features.unlabelled(train)
        labels, tags = self._labels(bank, train.device), None
        split, validation = self.source.split, None
        if split is not None and (split[bank] == VALIDATION).any():
            validation = torch.from_numpy(split[bank] == VALIDATION).to(train.device)
        if self.source.tags is not None and self.test_source.tags is not None:
            both = self.source.tags[bank], self.test_source.tags[self.test]
            tags = torch.from_numpy(both[0]).to(train.device), torch.from_numpy(both[1]).to(train.device)
        given = (train, labels[0], test, labels[1], self.num_classes)
        return Features(*given, of=self.recipe.data.name, validation=validation, tags=tags)

    def _labels(self, index: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        parts = (self.source.labels, index), (self.test_source.labels, self.test)
        bank, test = (np.full(len(at), -1) if all_ is None else all_[at] for all_, at in parts)
        return torch.from_numpy(bank).to(device), torch.from_numpy(test).to(device)
