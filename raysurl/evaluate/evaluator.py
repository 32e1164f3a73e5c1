"""When and on what a run is evaluated; the protocols themselves are in raysurl.evaluate.

Probes and health signals are of the backbone's features. What kNN compares is `eval.features`: the backbone's
features; the method's embedding; or `memory`, the embedding of a test image against the vectors that memory holds
of the training samples (Super-AND's headline). In the last two cases the backbone's kNN is logged beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysurl import health
from raysurl.data.source import Source
from raysurl.embed import embed, pixels
from raysurl.encoder import encoder_of
from raysurl.errors import InputError
from raysurl.evaluate import (
    Division,
    Features,
    Nodes,
    divide,
    evaluate,
    names,
    needs,
    of_pixels,
    pixel_features,
    prefixed,
)
from raysurl.functional import evenly_spaced
from raysurl.recipe import Recipe
from raysurl.runtime import Runtime


@dataclass(frozen=True)
class Networks:
    """What is evaluated: the backbone, and what `eval.features` names where that is something else."""

    encoder: nn.Module
    embedder: nn.Module | None = None
    remembered: Tensor | None = None  # (N, D) of the training samples


@dataclass(frozen=True)
class Evaluated:
    """The metrics, and what they are of: the backbone's features, of the samples `bank` (n,). None beyond rank 0."""

    metrics: dict[str, float]
    features: Features | None
    bank: NDArray[np.int64]


def final_names(recipe: Recipe, division: Division) -> set[str]:
    """The metrics of a finished run on data divided so."""
    settings, labelled = recipe.eval, bool(len(division.test))
    found = {"train/loss", *health.SIGNALS, *names(settings.protocols, settings, division)}
    if recipe.eval.features != "backbone" and labelled:
        knn = names(["knn"], settings, division)
        found |= knn | {prefixed(name, "backbone") for name in knn}
    if settings.baselines:
        asked = names(settings.protocols, settings, division)
        found |= {prefixed(name, "untrained") for name in asked}
        raw = names(of_pixels(settings.protocols), settings, division) if labelled else set()
        found |= {prefixed(name, "pixels") for name in raw}
    return found


def online_names(recipe: Recipe, division: Division) -> set[str]:
    """The metrics of an evaluation during training."""
    return {"train/loss", *health.SIGNALS, *names(["knn"], recipe.eval, division)}


class Evaluator:
    """Embeds the labelled train samples (the bank) and the test samples and runs protocols on rank 0.

    Without `eval_source` every tenth labelled training sample is held out as the test set: the encoder has seen
    its image, never its label. Without labels only the protocols that need none are run.
    """

    def __init__(self, recipe: Recipe, runtime: Runtime, source: Source, eval_source: Source | None) -> None:
        self.recipe, self.runtime = recipe, runtime
        self.source, self.test_source = source, eval_source or source
        self.notes: list[str] = []
        test = None if eval_source is None else np.flatnonzero(eval_source.readable)
        division = divide(source.labels, np.flatnonzero(source.readable), source.split, test)
        self.bank, self.test = division.bank, division.test
        if division.note:
            self.notes.append(division.note)
        self.num_classes = 0
        if not len(self.test):
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
            embed(encoder, self.test_source, self.recipe, device, self.test)
            if self.num_classes
            else train[:0]
        )
        if self.runtime.rank:
            return None
        return self._labelled(bank, train.to(device), test.to(device))

    def online(self, trained: Networks) -> dict[str, float]:
        """kNN and health during training."""
        count = min(self.recipe.eval.online_bank, len(self.bank))
        bank = self.bank[np.arange(count) * len(self.bank) // count]
        features, headline = self.features(trained.encoder, bank), self._headline(trained, bank)
        if features is None:
            return {}
        metrics = evaluate(features, self.recipe.eval, protocols=["knn"])
        return metrics | headline | health.signals(features.train)

    def final(self, trained: Networks) -> Evaluated:
        """All protocols, beside the untrained encoder and raw pixels."""
        settings, seed = self.recipe.eval, self.recipe.stream_seed
        features, headline = self.features(trained.encoder, self.bank), self._headline(trained, self.bank)
        untrained = None
        if settings.baselines:
            untrained = self.features(encoder_of(self.recipe).to(self.runtime.device), self.bank)
        nodes = self._nodes(trained.encoder)
        if features is None:
            return Evaluated({}, None, self.bank)
        features = replace(features, inputs=self._inputs(), nodes=nodes)
        metrics = evaluate(features, settings, seed=seed) | health.signals(features.train)
        if headline:
            backbone = evaluate(features, settings, protocols=["knn"], prefix="backbone", seed=seed)
            metrics |= backbone | headline
        if untrained is not None:
            metrics |= evaluate(untrained, settings, prefix="untrained", seed=seed)
        if settings.baselines and self.num_classes:
            raw = self._pixels()
            asked = of_pixels(settings.protocols)
            metrics |= evaluate(raw, settings, protocols=asked, prefix="pixels", seed=seed)
        return Evaluated(metrics, features, self.bank)

    def _headline(self, trained: Networks, bank: NDArray[np.int64]) -> dict[str, float]:
        """kNN of what `eval.features` names, where that is not the backbone."""
        if trained.embedder is None:
            return {}
        features = self.features(trained.embedder, bank, trained.remembered)
        return {} if features is None else evaluate(features, self.recipe.eval, protocols=["knn"])

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
        """Raw values of evenly spaced samples of the bank, for the protocol that compares embeddings with them."""
        settings = self.recipe.eval
        if "inputs" not in self._needs:
            return None
        chosen = evenly_spaced(torch.from_numpy(self.bank), settings.embedding_points).numpy()
        return pixels(self.source, self.recipe, chosen)

    def _nodes(self, encoder: nn.Module) -> Nodes | None:
        """All labelled samples, for the protocol that divides them itself. Every rank calls it."""
        if "nodes" not in self._needs or not self.num_classes:
            return None
        found = embed(encoder, self.source, self.recipe, self.runtime.device, self._all_labelled)
        return None if self.runtime.rank else self._labelled_nodes(found)

    @property
    def _needs(self) -> frozenset[str]:
        return needs(*self.recipe.eval.protocols)

    @property
    def _all_labelled(self) -> NDArray[np.int64]:
        assert self.source.labels is not None
        return np.flatnonzero(self.source.readable & (self.source.labels >= 0))

    def _labelled_nodes(self, features: Tensor) -> Nodes:
        assert self.source.labels is not None
        which, split = self._all_labelled, self.source.split
        parts = None if split is None else torch.from_numpy(split[which])
        return Nodes(features.cpu(), torch.from_numpy(self.source.labels[which]), parts)

    def _labelled(self, bank: NDArray[np.int64], train: Tensor, test: Tensor) -> Features:
        if not self.num_classes:
            return Features.unlabelled(train)
        train_labels, test_labels = self._labels(bank, train.device)
        return Features(train, train_labels, test, test_labels, self.num_classes)

    def _labels(self, index: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        assert self.source.labels is not None
        assert self.test_source.labels is not None
        bank, test = self.source.labels[index], self.test_source.labels[self.test]
        return torch.from_numpy(bank).to(device), torch.from_numpy(test).to(device)
